"""What only a machine with an NVIDIA GPU can show: ``make gpu-check``.

Uses what is installed, says what it skips and why, prints a table, writes JSON. Exit code 1 where
a goal is missed or something fails, 2 where nothing could be run.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from itertools import chain
from pathlib import Path

from scripts.gpu_check.report import Row, table, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu-check.json"))
    output = parser.parse_args().output
    missing = [
        name for name in ("torch", "triton", "cuda") if importlib.util.find_spec(name) is None
    ]
    if missing:
        print(f"gpu-check: not run, {', '.join(missing)} not installed", file=sys.stderr)
        return 2
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: not run, PyTorch sees no CUDA device here", file=sys.stderr)
        return 2
    return _run(output)


def _run(output: Path) -> int:
    from scripts.gpu_check import attention_rows, decode_step, device, engines

    facts = device.facts()
    bandwidth = device.read_bandwidth()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        place, capability = Path(folder), facts["capability"]
        checks = chain(
            [device.bandwidth_row(bandwidth)],
            attention_rows.rows(place, capability, bandwidth),
            engines.rows(),
            decode_step.rows(place, decode_step.targets(capability), bandwidth),
        )
        for row in checks:
            print(f"{row.section}: {row.what}: {row.value} {row.verdict}", flush=True)
            rows.append(row)
            write(output, facts, rows)  # a run that is cut off keeps what it found
    print(f"\n{facts['gpu']}, capability {facts['capability']}, {facts['packages']}\n")
    print(table(rows))
    return 1 if any(row.verdict in ("MISSED", "FAILED") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
