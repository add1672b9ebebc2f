"""``python -m enginewright.plugins.attention.cuda.report {parity,resources}``: tables for the docs.

Nothing here runs on a device: parity is interpreted on the CPU, resources are of compiled kernels.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from enginewright.plugins.attention.cuda.config import CAPABILITIES, KERNELS, KernelConfig, tile
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
    """A row for each kernel and the capabilities at which it comes out the same."""
    from enginewright.plugins.attention.cuda.compile import compile_kernels

    yield "| D | cache | kernel | capabilities | tile | warps | registers | spilled | shared KiB |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for config in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            compiled = compile_kernels([config], CAPABILITIES, Path(folder))
        found: dict[tuple[str, str], list[str]] = {}
        for entry in compiled.entries:
            cut = tile(config, entry.kernel, entry.capability)
            size = f"{cut.rows} x {cut.tokens}" if cut.tokens else str(cut.rows)
            taken = (
                f"{size} | {entry.num_warps} | {entry.registers} | {entry.spill_bytes} | "
                f"{entry.shared_bytes / 1024:.1f}"
            )
            found.setdefault((entry.kernel, taken), []).append(entry.capability)
        for kernel, taken in sorted(found, key=lambda row: KERNELS.index(row[0])):
            where = ", ".join(found[kernel, taken])
            yield f"| {config.head_dim} | {config.cache} | {kernel} | {where} | {taken} |"


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
