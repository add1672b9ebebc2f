"""What the measurements of one artifact print: where they were taken, a table, and remarks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.stats import HEADER, Figure, figures_data
from enginewright.cli.bench.turns import Samples, remark
from enginewright.cli.text import table
from enginewright.runtime.artifact.artifact import Artifact


def show(
    artifact: Artifact,
    threads: int,
    found: Sequence[Figure],
    taken: Mapping[str, Samples],
    as_json: bool,
) -> None:
    """Print the figures of one artifact; ``taken``: the samples that they come from."""
    if as_json:
        click.echo(json.dumps(data(artifact, threads, found, taken), indent=2))
        return
    where = machine.describe()
    most = max(len(samples.used) for samples in taken.values())
    click.echo(f"{artifact.manifest.name}, {threads} threads, {most} samples")
    click.echo(f"{where['processor']}, {where['cores']} cores\n")
    click.echo(table(HEADER, [figure.cells() for figure in found]))
    for name, samples in taken.items():
        if note := remark(name, samples):
            click.echo(f"\n{note}", err=True)


def data(
    artifact: Artifact, threads: int, found: Sequence[Figure], taken: Mapping[str, Samples]
) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "artifact": artifact.manifest.name,
        "precision": artifact.engine().precision,
        "threads": threads,
        "machine": machine.describe(),
        "disturbed_samples": sum(samples.disturbed for samples in taken.values()),
        "figures": figures_data(found),
    }
