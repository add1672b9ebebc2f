"""``enginewright bench sampler``: what choosing the tokens of a step costs beside its engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import OUR_WORKER, WORKERS, Sample, sample
from enginewright.cli.bench.options import threads_option
from enginewright.cli.bench.stats import HEADER, Figure, figures_data
from enginewright.cli.bench.turns import Take, remark, take_turns
from enginewright.cli.bench.workload import make_workload
from enginewright.cli.engine_options import ArtifactName
from enginewright.cli.text import table
from enginewright.runtime.artifact.artifact import Artifact

VOCABULARY = 150_000
PROMPT_TOKENS = 4
"""Few, so that what the prompt takes, which is subtracted, cannot drown the decode steps."""
DECODE_TOKENS = 32
PENALTIES = {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5}
TOP_P = {"temperature": 0.8, "top_p": 0.95}
TOP_K = TOP_P | {"top_k": 50}
MIXES: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.8},
    "top-p": TOP_P,
    "top-k, top-p": TOP_K,
    "top-k, top-p, penalties": TOP_K | PENALTIES,
    "top-p, penalties": TOP_P | PENALTIES,
    "top-k, top-p, penalties, 5 logprobs": TOP_K | PENALTIES | {"logprobs": 5},
}


@dataclass(frozen=True)
class Size:
    """How much is sampled."""

    vocabulary: int
    rows: int
    steps: int
    prompt_tokens: int = 512
    output_tokens: int = 256


@click.command(
    epilog=f"Host-side time of all rows of a step, one after another on one thread, for outputs of "
    f"some hundred tokens and random logits that are spread as a trained model's are. Each sample "
    f"is a process of its own. The decode step is LLM.generate's, greedy, after {PROMPT_TOKENS} "
    f"tokens of prompt."
)
@click.argument("artifact", type=ArtifactName(path_type=Path), required=False)
@click.option(
    "--vocabulary",
    type=click.IntRange(min=2),
    help=f"By default the artifact's, or {VOCABULARY} without one.",
)
@click.option("--rows", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@threads_option("Of the engine; by default all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    artifact: Path | None,
    vocabulary: int | None,
    rows: int,
    steps: int,
    runs: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure what sampling a step costs; with ARTIFACT, its share of that engine's decode step."""
    opened = None if artifact is None else Artifact.open(artifact)
    known = VOCABULARY if opened is None else opened.engine().vocab_size
    size = Size(vocabulary or known, rows, steps)
    takes = {"sampler": take_sampler(size)}
    if opened is not None:
        takes["engine"] = take_engine(opened, rows, threads or machine.cores())
    taken = take_turns(takes, runs, "measuring")
    found = sampler_figures(taken["sampler"].used)
    step = None if opened is None else step_figure(rows, taken["engine"].used)
    if as_json:
        click.echo(json.dumps(_data(opened, size, found, step), indent=2))
    else:
        name = "no engine" if opened is None else opened.manifest.name
        click.echo(f"{name}, vocabulary of {size.vocabulary}, {counted(rows)}")
        click.echo(f"{machine.describe()['processor']}\n")
        click.echo(report(found, step))
    for name, samples in taken.items():
        if note := remark(name, samples):
            click.echo(f"\n{note}", err=True)


def take_sampler(size: Size) -> Take:
    """Samples every mix in a process of its own."""
    work = {
        "vocabulary": size.vocabulary,
        "rows": size.rows,
        "steps": size.steps,
        "prompt_tokens": size.prompt_tokens,
        "output_tokens": size.output_tokens,
        "mixes": MIXES,
    }
    return partial(sample, (sys.executable, WORKERS / "sampling_cost.py"), work, poll=False)


def take_engine(artifact: Artifact, rows: int, threads: int) -> Take:
    """Runs decode steps of so many rows; more than the engine takes is a usage error."""
    work = make_workload(
        artifact.manifest, artifact.engine(), threads, PROMPT_TOKENS, DECODE_TOKENS, rows
    )
    return partial(sample, OUR_WORKER, work.at(str(artifact.path)), poll=False)


def sampler_figures(samples: Sequence[Sample]) -> list[Figure]:
    """The time of a step, for each mix."""
    said = [one.said for one in samples]
    return [Figure(name, "ms", tuple(one[name] * 1e3 for one in said)) for name in MIXES]


def step_figure(rows: int, samples: Sequence[Sample]) -> Figure:
    """The time of a decode step; of one row, the worker tells it apart from several."""
    which = "batch_s" if rows > 1 else "decode_s"
    milliseconds = tuple(one.said[which] / DECODE_TOKENS * 1e3 for one in samples)
    return Figure(f"decode step, {counted(rows)}", "ms", milliseconds)


def counted(rows: int) -> str:
    return f"{rows} row{'s' * (rows > 1)}"


def report(found: Sequence[Figure], step: Figure | None) -> str:
    """The table: one line a mix, and with a step each one's share of it."""
    if step is None:
        return table(HEADER, [figure.cells() for figure in found])
    rows = [(*figure.cells(), f"{figure.median / step.median:.1%}") for figure in found]
    return table((*HEADER, "of a step"), [*rows, (*step.cells(), "")])


def _data(
    artifact: Artifact | None, size: Size, found: Sequence[Figure], step: Figure | None
) -> dict[str, Any]:
    figures = [*found, *([] if step is None else [step])]
    shares = None if step is None else {one.name: one.median / step.median for one in found}
    return {
        "artifact": None if artifact is None else artifact.manifest.name,
        "vocabulary": size.vocabulary,
        "rows": size.rows,
        "machine": machine.describe(),
        "figures": figures_data(figures),
        "share_of_step": shares,
    }
