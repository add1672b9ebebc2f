"""``enginewright bench startup``: what it costs to begin, in the runtime alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import WORKERS, Sample, sample
from enginewright.cli.bench.environment import (
    Environment,
    bench_folder,
    environment,
    own_requirement,
)
from enginewright.cli.bench.options import threads_option
from enginewright.cli.bench.stats import HEADER, Figure, figures_data
from enginewright.cli.bench.turns import remark, take_turns
from enginewright.cli.engine_options import ArtifactName
from enginewright.cli.text import table
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import EnginewrightError

PROMPT = "The capital of France is"


@click.command()
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@threads_option()
@click.option(
    "--here",
    is_flag=True,
    help="Measure in this environment; nothing is installed and no size is given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(artifact: Path, runs: int, threads: int | None, here: bool, as_json: bool) -> None:
    """Measure process start to first token with ARTIFACT, the import, the environment's size.

    An environment with only enginewright[cpu] is made by pip under the user's cache folder, once
    for each version.
    """
    opened = Artifact.open(artifact)
    count = threads or machine.cores()
    place = None if here else _runtime_environment()
    python = Path(sys.executable) if place is None else place.python
    work = {"model": str(artifact.resolve()), "threads": count, "prompt": PROMPT}
    sample([python, WORKERS / "first_token.py"], work, poll=False)  # files into the page cache
    takes = {
        name: partial(sample, [python, WORKERS / script], work, poll=False)
        for name, script in (("start", "first_token.py"), ("import", "import_cost.py"))
    }
    taken = take_turns(takes, runs, "measuring")
    heavy = {module for one in taken["import"].used for module in one.said["heavy"]}
    if heavy:
        raise EnginewrightError(f"import enginewright.runtime imported {', '.join(sorted(heavy))}")
    found = _figures(taken["start"].used, taken["import"].used, place)
    if as_json:
        click.echo(json.dumps(_data(opened, count, found), indent=2))
        return
    click.echo(f"{opened.manifest.name}, {count} threads, {runs} processes\n")
    click.echo(table(HEADER, [figure.cells() for figure in found]))
    for name, samples in taken.items():
        if note := remark(name, samples):
            click.echo(note, err=True)


def _runtime_environment() -> Environment:
    requirement, key = own_requirement("cpu")
    return environment(bench_folder("environments") / f"runtime-{key}", [requirement])


def _figures(
    starts: Sequence[Sample], imports: Sequence[Sample], place: Environment | None
) -> list[Figure]:
    found = [
        Figure("to first token, wall", "s", tuple(s.said["reached"] - s.started for s in starts)),
        Figure("to first token, CPU", "s", tuple(s.said["cpu_s"] for s in starts)),
        Figure("import enginewright.runtime, CPU", "s", tuple(s.said["import_s"] for s in imports)),
        Figure("... with LLM, CPU", "s", tuple(s.said["llm_s"] for s in imports)),
    ]
    if place is not None:
        found.append(Figure("environment", "MB", (place.installed_bytes() / 1e6,)))
    return found


def _data(artifact: Artifact, threads: int, found: Sequence[Figure]) -> dict[str, Any]:
    return {
        "artifact": artifact.manifest.name,
        "threads": threads,
        "machine": machine.describe(),
        "figures": figures_data(found),
    }
