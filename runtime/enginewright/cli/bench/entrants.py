"""Who takes part in a comparison: artifacts of one model, and the peers that could be had."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from enginewright.cli.bench.children import MEASURE, OUR_WORKER, Sample, sample
from enginewright.cli.bench.comparison import Entrant
from enginewright.cli.bench.known_peers import PEERS
from enginewright.cli.bench.quality import Scores, compare, kept, windows
from enginewright.cli.bench.source import PeerSource
from enginewright.cli.bench.workload import weight_bytes
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends import load_backend
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.processor import processor_flags, processor_name
from enginewright.runtime.text.tokenizer import Tokenizer

OURS = "enginewright"


@dataclass(frozen=True)
class Runner:
    """What starts the worker of one entrant: its command, and the model that it opens."""

    entrant: Entrant
    command: Sequence[str | Path]
    model: str

    def take(self, request: Mapping[str, Any]) -> Sample:
        """One sample; raises PeerError if it is a peer and fails."""
        try:
            return sample(self.command, {**request, "model": self.model}, poll=False)
        except EnginewrightError as error:
            if self.entrant.ours:
                raise
            raise PeerError(self.entrant.label, str(error)) from error


class PeerError(EnginewrightError):
    """A peer that could not do one work."""

    def __init__(self, label: str, reason: str) -> None:
        super().__init__(f"{label}: {reason}")
        self.label, self.reason = label, reason


def same_source(opened: Sequence[Artifact]) -> Artifact:
    first, *others = opened
    for other in others:
        if other.manifest.source.digest != first.manifest.source.digest:
            raise click.UsageError(
                f"{other.path} and {first.path} were built from different models; "
                f"compare artifacts of one model"
            )
    return first


def ours(opened: Sequence[Artifact]) -> dict[str, Runner]:
    """Artifacts by their precision, or by their names where two have the same."""
    times = Counter(artifact.engine().precision for artifact in opened)
    found = {}
    for artifact in opened:
        engine = artifact.engine()
        load_backend(engine.target)
        named = artifact.path.name if times[engine.precision] > 1 else engine.precision
        entrant = Entrant(f"{OURS} {named}", True, weight_bytes(artifact))
        found[entrant.label] = Runner(entrant, OUR_WORKER, str(artifact.path))
    return found


def with_peers(
    asked: Sequence[tuple[str, str]], source: PeerSource, absent: dict[str, str]
) -> dict[str, Runner]:
    """Peers that could be installed and have a model; the others go to ``absent``."""
    found = {}
    for name, precision in asked:
        label = f"{name} {precision}"
        _tell(f"{label}: environment and model ...")
        try:
            model = PEERS[name].model(source, precision)
        except EnginewrightError as error:
            absent[label] = str(error)
            continue
        command = (model.python, MEASURE, model.worker)
        found[label] = Runner(Entrant(label, False, model.weight_bytes), command, str(model.path))
    return found


def with_quality(
    runners: Mapping[str, Runner], source: PeerSource, threads: int, absent: dict[str, str]
) -> dict[str, Runner]:
    """The same runners, each with its quality; a peer that cannot tell goes to ``absent``."""
    artifact = source.artifact
    tokenizer = Tokenizer.from_file(artifact.file("tokenizer.json"))
    pieces = windows(tokenizer.encode, artifact.engine().limits.max_context)
    request = {
        "task": "quality",
        "windows": pieces,
        "threads": threads,
        "rows": 1,
        "context": max(map(len, pieces)),
        "reuse": False,
    }
    base = {"windows": pieces, "source": source.digest, **arithmetic()}
    model = Entrant("fp32", True, 0)
    hf = Runner(model, (sys.executable, MEASURE, "transformers_engine"), str(source.checkpoint()))
    reference = _scores(hf, request, base | {"engine": "transformers"})
    graded = {}
    for label, runner in runners.items():
        _tell(f"{label}: quality ...")
        engine = _identity(runner)
        try:
            found = compare(_scores(runner, request, base | {"engine": engine}), reference)
        except PeerError as failure:
            absent[label] = f"quality: {failure.reason}"
            continue
        graded[label] = replace(runner, entrant=replace(runner.entrant, quality=found))
    return graded


def arithmetic() -> dict[str, Any]:
    """What answers depend on beside the model and the text: the instructions at hand."""
    kernels = os.environ.get("ENGINEWRIGHT_CPU_KERNELS")
    return {"processor": processor_name(), "flags": sorted(processor_flags()), "kernels": kernels}


def _identity(runner: Runner) -> str:
    """What an engine's answers depend on beside the text."""
    path = Path(runner.model)
    if runner.entrant.ours:
        engine = Artifact.open(path).engine()
        return f"{engine.fingerprint} {engine.cpu_kernels}"
    return f"{path.parent.name}/{path.name}"


def _scores(runner: Runner, request: Mapping[str, Any], key: Mapping[str, Any]) -> Scores:
    return kept(key, lambda: runner.take(request).said)


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)
