"""``enginewright bench speed``: how fast an artifact loads, reads a prompt and writes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import OUR_WORKER, sample
from enginewright.cli.bench.options import measurement
from enginewright.cli.bench.report import show
from enginewright.cli.bench.turns import take_turns
from enginewright.cli.bench.workload import BATCH, DECODE_PROMPT, figures, make_workload
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends import load_backend


@click.command(
    epilog=f"Every sample is a process of its own, warmed up before it is timed. Greedy, end "
    f"tokens ignored. Decode starts from {DECODE_PROMPT} tokens and leaves out the first token; "
    f"with {BATCH} rows it is the sum over the rows."
)
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--decode-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@measurement(runs=5)
def command(
    artifact: Path,
    prompt_tokens: int,
    decode_tokens: int,
    runs: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure ARTIFACT: load, first token, prefill and decode speed, memory."""
    opened = Artifact.open(artifact)
    engine = opened.engine()
    load_backend(engine.target)
    count = threads or machine.cores()
    work = make_workload(opened.manifest, engine, count, prompt_tokens, decode_tokens)
    take = partial(sample, OUR_WORKER, work.at(str(artifact)))
    taken = take_turns({"enginewright": take}, runs, "measuring")
    show(opened, count, figures(work, taken["enginewright"].used), taken, as_json)
