"""``enginewright bench peers``: an artifact and other engines, sampled in turns on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.checkpoint import checkpoint_of
from enginewright.cli.bench.children import MEASURE, OUR_WORKER, sample
from enginewright.cli.bench.peer import PEERS
from enginewright.cli.bench.stats import Figure, figures_data
from enginewright.cli.bench.turns import Samples, Take, remark, take_turns
from enginewright.cli.bench.workload import Workload, figures, make_workload
from enginewright.cli.text import number, table
from enginewright.runtime.artifact import Artifact
from enginewright.runtime.backends import load_backend
from enginewright.runtime.errors import EnginewrightError

OURS = "enginewright"


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
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
    work = make_workload(opened.manifest, engine, threads, prompt_tokens, decode_tokens)
    takes: dict[str, Take] = {OURS: partial(sample, OUR_WORKER, work.at(str(artifact)))}
    for name, precision in product(peers, precisions or [engine.precision]):
        takes[f"{name} {precision}"] = _peer(name, precision, opened, source_path, work)
    taken = take_turns(takes, runs, "measuring")
    found = {name: figures(work, samples.used) for name, samples in taken.items()}
    if as_json:
        click.echo(json.dumps(_data(opened, threads, taken, found), indent=2))
    else:
        click.echo("\n".join(_page(opened, threads, taken, found)))


def _peer(
    name: str, precision: str, artifact: Artifact, source_path: Path | None, work: Workload
) -> Take:
    """The sampling function of a peer, whose environment and model are made first."""
    peer = PEERS[name]
    if precision not in peer.precisions:
        legal = ", ".join(peer.precisions)
        raise EnginewrightError(f"{name} has no precision {precision}; give --precision {legal}")
    if sys.stderr.isatty():
        click.echo(f"{name}: environment and model ...", err=True)
    python = peer.python()
    model = peer.model(checkpoint_of(artifact, source_path), precision)
    return partial(sample, [python, MEASURE, peer.worker], work.at(str(model)))


def ratios(found: Mapping[str, Sequence[Figure]]) -> dict[str, dict[str, float]]:
    """Our median over the peer's, by peer and figure, where both have one."""
    ours = {figure.name: figure.median for figure in found[OURS]}
    return {
        name: {
            figure.name: ours[figure.name] / figure.median
            for figure in figures_
            if figure.name in ours and figure.median
        }
        for name, figures_ in found.items()
        if name != OURS
    }


def agreement(taken: Mapping[str, Samples]) -> dict[str, int]:
    """How many first greedy tokens each peer has in common with us."""
    ours = taken[OURS].used[0].said["token_ids"]
    return {
        name: _common(ours, samples.used[0].said["token_ids"])
        for name, samples in taken.items()
        if name != OURS
    }


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _page(
    artifact: Artifact,
    threads: int,
    taken: Mapping[str, Samples],
    found: Mapping[str, Sequence[Figure]],
) -> Iterator[str]:
    where = machine.describe()
    yield f"{artifact.manifest.name}, {threads} threads, in turns; medians (least - most)"
    yield f"{where['processor']}, {where['cores']} cores\n"
    over = ratios(found)
    by_engine = {name: {f.name: f for f in figures_} for name, figures_ in found.items()}
    rows = []
    for figure in found[OURS]:
        row = [f"{figure.name} ({figure.unit})"]
        for name, theirs in by_engine.items():
            row.append(_cell(theirs.get(figure.name)))
            if name != OURS:
                ratio = over[name].get(figure.name)
                row.append("" if ratio is None else f"{ratio:.2f}x")
        rows.append(row)
    header = ["measure", OURS]
    for name in over:
        header += [name, "ours / theirs"]
    yield table(header, rows)
    for name, common in agreement(taken).items():
        total = len(taken[OURS].used[0].said["token_ids"])
        yield f"\n{name}: the first {common} of {total} greedy tokens are ours"
    yield from filter(None, (remark(name, samples) for name, samples in taken.items()))


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    low, high = number(min(figure.samples)), number(max(figure.samples))
    return f"{number(figure.median)} ({low} - {high})"


def _data(
    artifact: Artifact,
    threads: int,
    taken: Mapping[str, Samples],
    found: Mapping[str, Sequence[Figure]],
) -> dict[str, Any]:
    return {
        "artifact": artifact.manifest.name,
        "threads": threads,
        "machine": machine.describe(),
        "engines": {name: figures_data(figures_) for name, figures_ in found.items()},
        "disturbed_samples": {name: samples.disturbed for name, samples in taken.items()},
        "ours_over_theirs": ratios(found),
        "equal_greedy_tokens": agreement(taken),
    }
