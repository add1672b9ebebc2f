"""``enginewright bench speed``: how fast an artifact loads, reads a prompt and writes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import OUR_WORKER, sample
from enginewright.cli.bench.stats import HEADER, figures_data
from enginewright.cli.bench.turns import remark, take_turns
from enginewright.cli.bench.workload import BATCH, DECODE_PROMPT, figures, make_workload
from enginewright.cli.engine_options import ArtifactName
from enginewright.cli.text import table
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends import load_backend


@click.command(
    epilog=f"Every sample is a process of its own, warmed up before it is timed. Greedy, end "
    f"tokens ignored. Decode starts from {DECODE_PROMPT} tokens and leaves out the first token; "
    f"with {BATCH} rows it is the sum over the rows."
)
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--decode-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="By default all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
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
    samples = take_turns({"enginewright": take}, runs, "measuring")["enginewright"]
    found = figures(work, samples.used)
    if as_json:
        data = {
            "artifact": opened.manifest.name,
            "precision": engine.precision,
            "threads": count,
            "machine": machine.describe(),
            "disturbed_samples": samples.disturbed,
            "figures": figures_data(found),
        }
        click.echo(json.dumps(data, indent=2))
        return
    where = machine.describe()
    click.echo(f"{opened.manifest.name}, {count} threads, {len(samples.used)} samples")
    click.echo(f"{where['processor']}, {where['cores']} cores\n")
    click.echo(table(HEADER, [figure.cells() for figure in found]))
    if note := remark("note", samples):
        click.echo(f"\n{note}", err=True)
