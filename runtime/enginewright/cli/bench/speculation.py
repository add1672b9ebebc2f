"""``enginewright bench speculation``: decoding with drafted tokens and without them, in turns."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import WORKERS, Sample, sample
from enginewright.cli.bench.options import measurement
from enginewright.cli.bench.report import show
from enginewright.cli.bench.stats import Figure
from enginewright.cli.bench.turns import take_turns
from enginewright.cli.engine_options import speculation_option
from enginewright.runtime.artifact.artifact import Artifact

NGRAM = {"method": "ngram", "num_speculative_tokens": 7}

TEXT = (
    "The lighthouse keeper climbed the stairs every evening at dusk. He carried a small lamp, a "
    "flask of oil and a worn notebook in which he wrote the names of the ships that passed. On "
    "clear nights he counted more than twenty of them, and on stormy nights he prayed that there "
    "would be none. His daughter Maria brought him bread and cheese on Sundays, and they sat "
    "together looking at the grey water."
)
QUESTIONS = {
    "repeat": f"Repeat this text exactly, word for word:\n\n{TEXT}",
    "edit": f"Rewrite this text with Anna instead of Maria. Change nothing else:\n\n{TEXT}",
    "chat": "What are the main differences between cats and dogs as pets?",
    "story": "Write a short story about a girl who finds a map in an old book.",
}
ALL = "all at once"


@click.command(
    epilog="Each sample is a process that answers each question with and without speculation, in "
    "turns, greedily; the questions go through the chat template. Times are those from the first "
    "token of an answer to its last; where all questions are asked at once, from asking to the "
    "last token of all. The answers must be the same."
)
@speculation_option
@click.option("--tokens", type=click.IntRange(min=2), default=160, show_default=True)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="In each sample."
)
@measurement(runs=3)
def command(
    artifact: Path,
    speculative_config: Mapping[str, Any] | None,
    tokens: int,
    rounds: int,
    runs: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure ARTIFACT with tokens drafted, by default from n-grams, beside plain decoding."""
    opened = Artifact.open(artifact)
    count = threads or machine.cores()
    work = {
        "model": str(artifact),
        "threads": count,
        "speculative_config": NGRAM if speculative_config is None else speculative_config,
        "questions": list(QUESTIONS.values()),
        "tokens": tokens,
        "rounds": rounds,
    }
    worker = (sys.executable, WORKERS / "speculated_answers.py")
    take = partial(sample, worker, work, poll=False)
    taken = take_turns({"speculation": take}, runs, "measuring")
    show(opened, count, figures(taken["speculation"].used), taken, as_json)


def figures(samples: Sequence[Sample]) -> list[Figure]:
    """Of each question, and of all at once: a token's time both ways, how many times faster, and
    what was accepted."""
    found = []
    for at, name in enumerate((*QUESTIONS, ALL)):
        said = [one.said["answers"][at] for one in samples]
        if not all(one["same"] for one in said):
            raise click.ClickException(f"{name}: speculation changed the answer")
        gaps = [max(one["tokens"] - 1, 1) for one in said]
        for key, title in (("plain_s", "plain"), ("fast_s", "speculated")):
            each = zip(said, gaps, strict=True)
            times = tuple(sum(one[key]) / len(one[key]) / gap * 1e3 for one, gap in each)
            found.append(Figure(f"{name}, {title}", "ms a token", times))
        ratios = tuple(sum(one["plain_s"]) / sum(one["fast_s"]) for one in said)
        found.append(Figure(f"{name}, speed", "times plain", ratios))
        shares = [one["accepted"] / one["drafted"] * 100 for one in said if one["drafted"]]
        if shares:
            found.append(Figure(f"{name}, accepted", "% of drafted", tuple(shares)))
    return found
