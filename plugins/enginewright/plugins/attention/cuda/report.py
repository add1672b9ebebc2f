"""``python -m enginewright.plugins.attention.cuda.report {parity,resources}``: tables for the docs.

Nothing here runs on a device: parity is interpreted on the CPU, resources are of compiled kernels.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from enginewright.plugins.attention.cuda.config import CAPABILITIES, KernelConfig, tile
from enginewright.plugins.attention.cuda.interpret import interpreter, run
from enginewright.plugins.attention.cuda.parity import (
    CASES,
    TOLERANCE,
    cache_error,
    expected,
    make_inputs,
    out_error,
    untouched,
)

BASE = KernelConfig("float16", 32, 8, 128, 32, rotary_dim=128, has_sinks=True, has_softcap=True)
CONFIGS = (
    replace(BASE, head_dim=64, rotary_dim=64),
    BASE,
    replace(BASE, cache="int8"),
    replace(BASE, cache="fp8"),
    replace(BASE, head_dim=256),
    replace(BASE, head_dim=256, cache="fp8"),
)
"""Everything that takes registers is switched on."""


def parity() -> Iterator[str]:
    """A row for each case of the sweep: the largest errors, and what is allowed."""
    yield "| case | error of out | allowed | error of the cache | rest untouched |"
    yield "|---|---|---|---|---|"
    with interpreter() as process:
        for case in CASES:
            arrays = make_inputs(case)
            given = (case.config, case.capability, case.scalars, arrays, case.native_fp8)
            found, _ = process.submit(run, *given).result()
            wanted = expected(case, arrays)
            unit = "" if case.cache == "same" else " codes"
            yield (
                f"| {case} | {out_error(case, found, wanted):.1e} | {TOLERANCE[case.io]:.1e} | "
                f"{cache_error(case, arrays, found, wanted):.1e}{unit} | "
                f"{'yes' if untouched(case, arrays, found) else 'NO'} |"
            )


def resources() -> Iterator[str]:
    """A row for each attention kernel and capability: tile, registers, spills, shared memory."""
    from enginewright.plugins.attention.cuda.compile import compile_kernels

    yield "| D | cache | kernel | capability | tile | warps | registers | spilled | shared KiB |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for config in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            compiled = compile_kernels([config], CAPABILITIES, Path(folder))
        for entry in compiled.entries:
            if entry.kernel not in ("decode", "prefill"):
                continue
            cut = tile(config, entry.kernel, entry.capability)
            yield (
                f"| {config.head_dim} | {config.cache} | {entry.kernel} | {entry.capability} | "
                f"{cut.rows} x {cut.tokens} | {entry.num_warps} | {entry.registers} | "
                f"{entry.spill_bytes} | {entry.shared_bytes / 1024:.0f} |"
            )


TABLES: dict[str, Callable[[], Iterator[str]]] = {"parity": parity, "resources": resources}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in TABLES:
        print(f"one of {', '.join(TABLES)} is needed", file=sys.stderr)
        return 2
    for line in TABLES[arguments[0]]():
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
