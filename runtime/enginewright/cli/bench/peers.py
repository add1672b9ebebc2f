"""``enginewright bench peers``: an artifact and other engines, sampled in turns on this machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from itertools import product
from pathlib import Path

import click

from enginewright.cli.bench.checkpoint import checkpoint_of
from enginewright.cli.bench.children import MEASURE, OUR_WORKER, sample
from enginewright.cli.bench.comparison import OURS, Comparison
from enginewright.cli.bench.peer import PEERS
from enginewright.cli.bench.turns import Take, take_turns
from enginewright.cli.bench.workload import Workload, make_workload
from enginewright.cli.engine_options import ArtifactName
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends import load_backend
from enginewright.runtime.conformance import REFERENCE_FILE, Reference

CHECKS, CHECK_TOKENS = 4, 32
"""How many prompts, and tokens after each, are compared with the Hugging Face model."""


@click.command()
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option(
    "--peer",
    "peers",
    type=click.Choice(list(PEERS)),
    multiple=True,
    default=list(PEERS),
    show_default=True,
    help="Engine to measure beside; may be given several times.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    help="The peers' precision, by default the artifact's own; may be given several times.",
)
@click.option(
    "--source",
    "source_path",
    type=click.Path(exists=True, path_type=Path),
    help="Checkpoint or GGUF file that the artifact was built from, where it does not say.",
)
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--decode-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    artifact: Path,
    peers: tuple[str, ...],
    precisions: tuple[str, ...],
    source_path: Path | None,
    prompt_tokens: int,
    decode_tokens: int,
    runs: int,
    threads: int,
    as_json: bool,
) -> None:
    """Measure ARTIFACT and its peers in turns, A B A B, and print medians and ratios.

    Each peer gets an environment of its own under the user's cache folder, and writes its own
    model with its own builder, from the artifact's source dequantized to fp32. All get the same
    prompts, as token ids.
    """
    opened = Artifact.open(artifact)
    engine = opened.engine()
    load_backend(engine.target)
    prompts, expected = _expected(opened)
    work = dataclasses.replace(
        make_workload(opened.manifest, engine, threads, prompt_tokens, decode_tokens),
        check_prompts=prompts,
        check_tokens=len(expected[0]) if expected else 0,
    )
    takes: dict[str, Take] = {OURS: partial(sample, OUR_WORKER, work.at(str(artifact)))}
    for name, precision in product(peers, precisions or [engine.precision]):
        takes[f"{name} {precision}"] = _peer(name, precision, opened, source_path, work)
    taken = take_turns(takes, runs, "measuring")
    compared = Comparison(opened.manifest.name, work, taken, expected)
    if as_json:
        click.echo(json.dumps(compared.as_data(), indent=2))
    else:
        click.echo("\n".join(compared.page()))


def _peer(
    name: str, precision: str, artifact: Artifact, source_path: Path | None, work: Workload
) -> Take:
    """The sampling function of a peer, whose environment and model are made first."""
    peer = PEERS[name]
    if precision not in peer.precisions:
        legal = ", ".join(peer.precisions)
        raise click.UsageError(f"--precision {precision}: {name} has {legal}")
    if sys.stderr.isatty():
        click.echo(f"{name}: environment and model ...", err=True)
    python = peer.python()
    model = peer.model(checkpoint_of(artifact, source_path), precision)
    return partial(sample, [python, MEASURE, peer.worker], work.at(str(model)))


def _expected(artifact: Artifact) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of the conformance check, and what the Hugging Face model wrote after them."""
    if not artifact.holds(REFERENCE_FILE):
        return [], []
    reference = Reference.load(artifact.file(REFERENCE_FILE))
    greedy = reference.greedy_ids[:CHECKS, :CHECK_TOKENS].tolist()
    return reference.prompts()[:CHECKS], greedy
