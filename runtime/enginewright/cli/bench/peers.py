"""``enginewright bench peers``: artifacts and other engines, sampled in turns on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from enginewright.cli.bench.comparison import Comparison
from enginewright.cli.bench.entrants import (
    PeerError,
    Runner,
    ours,
    same_source,
    with_peers,
    with_quality,
)
from enginewright.cli.bench.known_peers import NOT_BY_DEFAULT, PEERS
from enginewright.cli.bench.options import threads_option
from enginewright.cli.bench.plot import draw
from enginewright.cli.bench.source import PeerSource
from enginewright.cli.bench.turns import Samples, take_turns
from enginewright.cli.bench.workload import most_rows, ordinary_ids
from enginewright.cli.bench.works import WORKS, Work
from enginewright.cli.engine_options import ArtifactName
from enginewright.runtime.artifact.artifact import Artifact

EVERY_PEER = tuple(f"{name}:{each}" for name, peer in PEERS.items() for each in peer.precisions)


@click.command(
    epilog=f"Works: {', '.join(WORKS)}. Peers: {', '.join(EVERY_PEER)}. Each sample is a process "
    f"of its own; greedy, end tokens ignored, the same prompts as token ids for all. An engine is "
    f"near-lossless if its likeliest token is that of the model in fp32 in 95% of the places of "
    f"a text that no build has seen, and its perplexity lies within 1%."
)
@click.argument("artifacts", type=ArtifactName(path_type=Path), nargs=-1, required=True)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME[:PRECISION]",
    help="Engine to measure beside; may be given several times.",
)
@click.option(
    "--work",
    "works",
    type=click.Choice(list(WORKS)),
    multiple=True,
    help="Measure this one; may be given several times. By default all that the engines can do.",
)
@click.option("--quality/--no-quality", default=True, help="Measure the class of each engine.")
@click.option(
    "--source",
    "source_path",
    type=click.Path(exists=True, path_type=Path),
    help="Checkpoint or GGUF file that the artifacts were built from, where they do not say.",
)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@threads_option("Of each engine.", default=2, show_default=True)
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write peers.txt, peers.json and peers.svg to this folder, anew after each work.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    artifacts: tuple[Path, ...],
    peers: tuple[str, ...],
    works: tuple[str, ...],
    quality: bool,
    source_path: Path | None,
    runs: int,
    threads: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure ARTIFACTS of one model and its peers in turns; print medians and ratios.

    Each peer gets an environment of its own under the user's cache folder, and its own model,
    made with its own tools from what the artifacts were built from. One that cannot be
    installed, or fails, is named with the reason.
    """
    asked = [_parsed(text) for name in peers or EVERY_PEER for text in _spelled(name)]
    opened = [Artifact.open(path) for path in artifacts]
    source = PeerSource(same_source(opened), source_path)
    runners = ours(opened)
    absent = {} if peers else dict(NOT_BY_DEFAULT)
    runners |= with_peers(asked, source, absent)
    if quality:
        runners = with_quality(runners, source, threads, absent)
    fitting = {
        name: work
        for name, work in WORKS.items()
        if (not works or name in works)
        and all(work.fits(a.engine().limits, most_rows(a.engine())) for a in opened)
    }
    absent |= dict.fromkeys(set(works) - set(fitting), "the artifacts are too small for it")
    entrants = {label: runner.entrant for label, runner in runners.items()}
    name = opened[0].manifest.source.reference
    compared = Comparison(name, threads, entrants, fitting, {}, absent)
    ordinary = ordinary_ids(opened[0].manifest, opened[0].engine())
    for work in fitting.values():
        samples = _sampled(work, runners, ordinary, runs, threads, absent)
        compared = replace(compared, taken={**compared.taken, work.name: samples})
        if save is not None:
            _save(compared, save)
    click.echo(json.dumps(compared.as_data(), indent=2) if as_json else "\n".join(compared.page()))


def _sampled(
    work: Work,
    runners: Mapping[str, Runner],
    ordinary: Sequence[int],
    runs: int,
    threads: int,
    absent: dict[str, str],
) -> dict[str, Samples]:
    """Samples of all entrants in turns; a peer that fails is left out, and the rest begin anew."""
    request = work.request(ordinary, threads)
    left = dict(runners)
    while True:
        takes = {label: partial(runner.take, request) for label, runner in left.items()}
        try:
            return take_turns(takes, runs, work.name)
        except PeerError as failure:
            absent[f"{failure.label}, {work.title}"] = failure.reason
            del left[failure.label]


def _save(compared: Comparison, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "peers.txt": "\n".join(compared.page()) + "\n",
        "peers.json": json.dumps(compared.as_data(), indent=2) + "\n",
        "peers.svg": draw(compared),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")


def _spelled(name: str) -> list[str]:
    """``NAME`` stands for the peer in all of its usual precisions."""
    peer = PEERS.get(name)
    return [name] if peer is None else [f"{name}:{each}" for each in peer.precisions]


def _parsed(text: str) -> tuple[str, str]:
    name, _, precision = text.partition(":")
    if name in NOT_BY_DEFAULT:
        raise click.UsageError(f"--peer {name}: {NOT_BY_DEFAULT[name]}")
    if name not in PEERS:
        raise click.UsageError(f"--peer {text}: the peers are {', '.join(PEERS)}")
    legal = PEERS[name].precisions + PEERS[name].others
    if precision not in legal:
        raise click.UsageError(f"--peer {text}: {name} has {', '.join(legal)}")
    return name, precision
