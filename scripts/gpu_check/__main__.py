"""What only a machine with an NVIDIA GPU can show: ``make gpu-check``.

Uses what is installed, says what it skips and why, prints a table, writes JSON. Exit code 1 where
a goal is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
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
    from scripts.gpu_check import attention_rows, device, engines

    facts = device.facts()
    bandwidth = device.read_bandwidth()
    rows: list[Row] = [device.bandwidth_row(bandwidth)]
    with tempfile.TemporaryDirectory() as folder:
        for row in attention_rows.rows(Path(folder), facts["capability"], bandwidth):
            print(f"{row.section}: {row.what}: {row.value} {row.verdict}", flush=True)
            rows.append(row)
    rows += engines.rows()
    print(f"\n{facts['gpu']}, capability {facts['capability']}, {facts['packages']}\n")
    print(table(rows))
    write(output, facts, rows)
    return 1 if any(row.verdict == "MISSED" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
