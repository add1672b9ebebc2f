"""``enginewright bench latency``: one stream, at several lengths of its context."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import WORKERS, Sample, sample
from enginewright.cli.bench.options import measurement
from enginewright.cli.bench.report import show
from enginewright.cli.bench.stats import Figure, shares_of
from enginewright.cli.bench.turns import take_turns
from enginewright.cli.bench.workload import ordinary_ids
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends import load_backend

CONTEXTS = (64, 512, 4096, 8000)
WARM = 64


@click.command(
    epilog="Each sample is a process of its own; greedy, end tokens ignored, prompts of random "
    "tokens. The time to the first token of a context is that of prefilling it. p50 is what half "
    "of the gaps between tokens stay below."
)
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(min=1),
    multiple=True,
    help=f"Tokens of the prompt; may be given several times. By default those of "
    f"{', '.join(map(str, CONTEXTS))} that the engine takes.",
)
@click.option("--tokens", type=click.IntRange(min=2), default=64, show_default=True)
@measurement(runs=3)
def command(
    artifact: Path,
    contexts: tuple[int, ...],
    tokens: int,
    runs: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure one stream of ARTIFACT: time to the first token, and between tokens."""
    opened = Artifact.open(artifact)
    load_backend(opened.engine().target)
    count = threads or machine.cores()
    lengths = fitting(contexts, opened.engine().limits.max_context - tokens)
    draw = partial(random.Random(20).choices, ordinary_ids(opened.manifest, opened.engine()))
    work = {
        "model": str(artifact),
        "threads": count,
        "tokens": tokens,
        "warm_ids": draw(k=min(WARM, *lengths)),
        "prompts": [draw(k=length) for length in lengths],
    }
    take = partial(sample, (sys.executable, WORKERS / "token_times.py"), work, poll=False)
    taken = take_turns({"latency": take}, runs, "measuring")
    show(opened, count, figures(lengths, taken["latency"].used), taken, as_json)


def fitting(asked: Sequence[int], room: int) -> list[int]:
    """The contexts to measure; one that was asked for and does not fit is wrong usage."""
    for context in asked:
        if context > room:
            raise click.UsageError(
                f"--context {context}: with the tokens that follow, this engine takes at most "
                f"{room}"
            )
    found = list(asked) or [context for context in CONTEXTS if context <= room]
    if not found:
        raise click.UsageError(f"this engine takes contexts of {room} at most: --context {room}")
    return found


def figures(lengths: Sequence[int], samples: Sequence[Sample]) -> list[Figure]:
    """Of each context: the first token, prefill, and percentiles of what is between tokens."""
    found = []
    for at, length in enumerate(lengths):
        streams = [one.said["streams"][at] for one in samples]
        first = [stream["first_s"] for stream in streams]
        found += [
            Figure(f"first token of {length}", "ms", tuple(s * 1e3 for s in first)),
            Figure(f"prefill {length}", "tokens/s", tuple(length / s for s in first)),
            *shares_of(f"between tokens at {length}", [stream["between_s"] for stream in streams]),
        ]
    return found
