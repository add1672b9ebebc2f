"""``enginewright bench reuse``: what sharing the KV cache is worth, and what beams cost."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import WORKERS, sample
from enginewright.cli.bench.options import threads_option
from enginewright.cli.bench.reuse_report import BEAMS, OFF, ON, Report
from enginewright.cli.bench.turns import Take, take_turns
from enginewright.cli.bench.workload import most_rows, ordinary_ids
from enginewright.cli.engine_options import ArtifactName
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.beam_search.params import Algorithm

OWN_TOKENS, OUTPUT_TOKENS = 16, 8
"""Of each of the prompts that begin alike."""
OPENING, ANSWER, QUESTION = 60, 40, 30
"""Tokens of a conversation: its first turn; then, in turns, the model's and the user's."""
BEAM_PROMPT, BEAM_TOKENS = 240, 64


@click.command(
    epilog=f"Each sample is a process of its own. The prompts have {OWN_TOKENS} tokens of their "
    f"own and get {OUTPUT_TOKENS}, greedy. A conversation begins with {OPENING} tokens, and each "
    f"turn adds an answer of {ANSWER} and {QUESTION} new ones; what counts is the time to the "
    f"first token of each answer. Beams: {BEAM_TOKENS} tokens after {BEAM_PROMPT}; the copies of "
    f"the prompt to all beams stand apart."
)
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option("--prompts", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--prefix", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--turns", type=click.IntRange(min=1), default=10, show_default=True)
@click.option(
    "--width",
    "widths",
    type=click.IntRange(min=2),
    multiple=True,
    default=(4, 8),
    show_default=True,
    help="Of the beam searches; may be given several times.",
)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@threads_option()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    artifact: Path,
    prompts: int,
    prefix: int,
    turns: int,
    widths: tuple[int, ...],
    runs: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure ARTIFACT with and without prefix caching, and the steps of beam searches."""
    opened = Artifact.open(artifact)
    _check(opened.engine(), prompts, prefix, turns, widths)
    count = threads or machine.cores()
    searches = [
        {"beam_width": width, "algorithm": rules}
        for width in widths
        for rules in get_args(Algorithm)
    ]
    beams = {"prompt_tokens": BEAM_PROMPT, "output_tokens": BEAM_TOKENS, "searches": searches}
    base = {"model": str(artifact), "threads": count}
    work = base | prompt_work(opened, prompts, prefix, turns)
    takes = {
        ON: take("prompt_reuse.py", work | {"prefix_caching": True}),
        OFF: take("prompt_reuse.py", work | {"prefix_caching": False}),
        BEAMS: take("beam_steps.py", base | beams),
    }
    taken = take_turns(takes, runs, "measuring")
    report = Report(opened.manifest.name, count, prompts, turns, searches, taken)
    click.echo(json.dumps(report.as_data(), indent=2) if as_json else "\n".join(report.page()))


def take(worker: str, work: Mapping[str, Any]) -> Take:
    """Runs a worker in a process of its own."""
    return partial(sample, (sys.executable, WORKERS / worker), work, poll=False)


def _check(
    engine: EngineEntry, prompts: int, prefix: int, turns: int, widths: Sequence[int]
) -> None:
    rows, room = most_rows(engine), engine.limits.max_context
    for option, value in (("--prompts", prompts), ("--width", max(widths))):
        if value > rows:
            raise click.UsageError(f"{option} {value}: this engine takes at most {rows}")
    most = room - OWN_TOKENS - OUTPUT_TOKENS
    if prefix > most:
        raise click.UsageError(f"--prefix {prefix}: this engine takes at most {most}")
    most = (room - OPENING + QUESTION) // (ANSWER + QUESTION)
    if turns > most:
        raise click.UsageError(f"--turns {turns}: this engine takes at most {most}")
    needed = BEAM_PROMPT + BEAM_TOKENS
    if needed > room:
        raise click.UsageError(
            f"{needed} tokens of a beam: this engine takes at most {room}; build it with a larger "
            f"max_context"
        )


def prompt_work(artifact: Artifact, prompts: int, prefix: int, turns: int) -> dict[str, Any]:
    """Prompts that begin alike and what the user says, as random tokens from a fixed seed."""
    draw = partial(random.Random(20).choices, ordinary_ids(artifact.manifest, artifact.engine()))
    shared = draw(k=prefix)
    return {
        "warm_ids": draw(k=OPENING),
        "prompts": [shared + draw(k=OWN_TOKENS) for _ in range(prompts)],
        "output_tokens": OUTPUT_TOKENS,
        "turns": [draw(k=QUESTION if turn else OPENING) for turn in range(turns)],
        "answer_tokens": ANSWER,
    }
