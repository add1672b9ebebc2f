"""``enginewright bench throughput``: many streams of mixed lengths, in loops and as they come.

In a closed loop each of so many clients sends its next request when the last one has ended. The
other load sends requests at random moments (a Poisson process), whether or not earlier ones ended.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import WORKERS, Sample, sample
from enginewright.cli.bench.options import FiniteRange, measurement
from enginewright.cli.bench.report import show
from enginewright.cli.bench.stats import Figure, shares_of
from enginewright.cli.bench.turns import take_turns
from enginewright.cli.bench.workload import most_rows, ordinary_ids
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends import load_backend

STREAMS = (1, 8, 32)
PROMPTS, OUTPUTS = (32, 128, 512), (16, 64, 128)
"""Lengths of the requests, drawn with equal chances; cut to what the engine takes."""
LOAD = 0.7
"""Of the requests a second that the closed loop with the most streams reached."""


@click.command(
    epilog=f"Each sample is a process of its own with an AsyncLLM; greedy, end tokens ignored, "
    f"prefix caching off. Prompts have {', '.join(map(str, PROMPTS))} random tokens and get "
    f"{', '.join(map(str, OUTPUTS))}, mixed. A closed loop of N streams answers 2 N requests and "
    f"at least 8; tokens/s counts output tokens over all of its time."
)
@click.option(
    "--streams",
    type=click.IntRange(min=1),
    multiple=True,
    help=f"Of the closed loops; may be given several times. By default those of "
    f"{', '.join(map(str, STREAMS))} that the engine takes as rows.",
)
@click.option(
    "--rate",
    type=FiniteRange(min=0, min_open=True),
    help=f"Requests a second that arrive; by default {LOAD:.0%} of what the last loop reached.",
)
@measurement(runs=3)
def command(
    artifact: Path,
    streams: tuple[int, ...],
    rate: float | None,
    runs: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure ARTIFACT under many requests: tokens a second, and how long each one waits."""
    opened = Artifact.open(artifact)
    engine = opened.engine()
    load_backend(engine.target)
    count = threads or machine.cores()
    loops = list(streams) or [n for n in STREAMS if n <= most_rows(engine)]
    most = max(loops)
    draw = random.Random(20)
    work = {
        "model": str(artifact),
        "threads": count,
        "loops": [
            {"streams": n, "requests": requests(opened.manifest, draw, max(2 * n, 8))}
            for n in loops
        ],
        "arriving": requests(opened.manifest, draw, max(2 * most, 8)),
        "gaps": [draw.expovariate(1.0) for _ in range(max(2 * most, 8))],
        "rate": rate,
        "load": LOAD,
    }
    take = partial(sample, (sys.executable, WORKERS / "many_requests.py"), work, poll=False)
    taken = take_turns({"throughput": take}, runs, "measuring")
    show(opened, count, figures(loops, taken["throughput"].used), taken, as_json)


def requests(manifest: Manifest, draw: random.Random, count: int) -> list[dict[str, Any]]:
    """Prompts as token ids, and how many tokens each gets."""
    engine = manifest.engines[0]
    ordinary, room = ordinary_ids(manifest, engine), engine.limits.max_context
    made = []
    for _ in range(count):
        tokens = min(draw.choice(OUTPUTS), room // 2)
        length = min(draw.choice(PROMPTS), room - tokens)
        made.append({"ids": draw.choices(ordinary, k=length), "tokens": tokens})
    return made


def figures(loops: Sequence[int], samples: Sequence[Sample]) -> list[Figure]:
    """The figures of each closed loop, then those of the arriving requests."""
    found = []
    for at, streams in enumerate(loops):
        name = "1 stream" if streams == 1 else f"{streams} streams"
        found += _load(name, [one.said["loops"][at] for one in samples])
    arriving = [one.said["arriving"] for one in samples]
    rates = tuple(one["rate"] for one in arriving)
    return [*found, Figure("arriving", "requests/s", rates), *_load("arriving", arriving)]


def _load(name: str, said: Sequence[Mapping[str, Any]]) -> list[Figure]:
    rates = tuple(one["output_tokens"] / one["wall_s"] for one in said)
    return [
        Figure(name, "tokens/s", rates),
        *shares_of(f"{name}, first token", [one["first_s"] for one in said]),
        *shares_of(f"{name}, between tokens", [one["between_s"] for one in said]),
    ]
