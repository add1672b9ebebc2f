"""``enginewright bench memory``: what a process holds when it has loaded, and after some work."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import WORKERS, sample
from enginewright.cli.bench.options import measurement
from enginewright.cli.bench.report import show
from enginewright.cli.bench.stats import Figure
from enginewright.cli.bench.turns import take_turns
from enginewright.cli.bench.workload import most_rows, ordinary_ids, weight_bytes, weight_files
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends import load_backend

PROMPT, ROWS = 512, 32
ROW_PROMPT, TOKENS = 64, 16


@click.command(
    epilog=f"A process of its own: it loads, continues one prompt of {PROMPT} tokens, then {ROWS} "
    f"rows together, or as many as the engine takes. Peak is the most that was resident until "
    f"then; anonymous is what no file backs; beyond the weights is the peak less what is resident "
    f"of the files that hold the engine's weights."
)
@measurement(runs=3)
def command(artifact: Path, runs: int, threads: int | None, as_json: bool) -> None:
    """Measure the memory of a process that runs ARTIFACT."""
    opened = Artifact.open(artifact)
    engine = opened.engine()
    load_backend(engine.target)
    count, room = threads or machine.cores(), engine.limits.max_context
    draw = partial(random.Random(20).choices, ordinary_ids(opened.manifest, engine))
    rows, length = min(ROWS, most_rows(engine)), min(PROMPT, room - TOKENS)
    work = {
        "model": str(artifact),
        "threads": count,
        "weights": [Path(name).name for name in weight_files(opened)],
        "tokens": TOKENS,
        "one": [draw(k=length)],
        "many": [draw(k=min(ROW_PROMPT, length)) for _ in range(rows)],
    }
    take = partial(sample, (sys.executable, WORKERS / "memory_use.py"), work, poll=False)
    taken = take_turns({"memory": take}, runs, "measuring")
    used = taken["memory"].used
    found = [Figure("weights", "MB", (weight_bytes(opened) / 1e6,))]
    for stage, name in (
        ("loaded", "loaded"),
        ("one", f"{length} tokens"),
        ("many", f"{rows} rows"),
    ):
        found += figures(name, [one.said[stage] for one in used])
    show(opened, count, found, taken, as_json)


def figures(name: str, said: Sequence[Mapping[str, int]]) -> list[Figure]:
    """Peak, anonymous, and what is beyond the weights, at one moment of each sample."""
    parts = {
        "peak": [one["peak"] for one in said],
        "anonymous": [one["anonymous"] for one in said],
        "beyond the weights": [one["peak"] - one["mapped"] for one in said],
    }
    return [
        Figure(f"{name}, {part}", "MB", tuple(count / 1e6 for count in counts))
        for part, counts in parts.items()
    ]
