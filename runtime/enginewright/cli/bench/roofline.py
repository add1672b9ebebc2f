"""``enginewright bench roofline``: what share of this machine's read bandwidth decode steps reach.

A step reads all weights once and the cache of each of its rows, as the manifest states them: at the
measured bandwidth that takes a time below which no step can be, its floor.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import WORKERS, Sample, sample
from enginewright.cli.bench.options import measurement
from enginewright.cli.bench.stats import HEADER, Figure, figures_data
from enginewright.cli.bench.turns import Samples, remark, take_turns
from enginewright.cli.bench.workload import most_rows, ordinary_ids, weight_bytes
from enginewright.cli.text import table
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import KVEntry
from enginewright.runtime.backends import load_backend
from enginewright.runtime.doctor.needs import kv_bytes_per_token

STEPS = ((1, 64), (1, 512), (1, 4096), (8, 512), (32, 512))
"""Rows, and tokens that each of them holds."""
TOKENS = 16


@dataclass(frozen=True)
class Step:
    """A decode step: its shape, the bytes that it reads, and the times that were measured."""

    rows: int
    context: int
    read: int
    seconds: Figure

    @property
    def name(self) -> str:
        return f"{self.rows} row{'s' if self.rows > 1 else ''} at {self.context}"

    def floor(self, bandwidth: float) -> float:
        """Milliseconds that reading takes at ``bandwidth`` bytes a second."""
        return self.read / bandwidth * 1e3

    def share(self, bandwidth: float) -> float:
        """Of the floor, 0 to 1: 1 is a step that takes no longer than its reads."""
        return self.floor(bandwidth) / self.seconds.median


@click.command(
    epilog="Bandwidth is the best of several passes over buffers far larger than any cache; fp32 "
    "compute is that of numpy's matrix product. A step's time has all that lies between two "
    "steps, host work included. With many rows a step may be bound by its arithmetic instead."
)
@measurement(runs=3)
def command(artifact: Path, runs: int, threads: int | None, as_json: bool) -> None:
    """Measure decode steps of ARTIFACT beside the time that reading their bytes takes."""
    opened = Artifact.open(artifact)
    engine = opened.engine()
    load_backend(engine.target)
    if engine.target != "cpu":
        raise click.UsageError(f"{opened.manifest.name} is for {engine.target}; this measures CPUs")
    count = threads or machine.cores()
    shapes = [
        (rows, context)
        for rows, context in STEPS
        if rows <= most_rows(engine) and context + TOKENS <= engine.limits.max_context
    ]
    if not shapes:
        raise click.UsageError(f"max_context {engine.limits.max_context} is too small for a step")
    probe = (sys.executable, WORKERS / "read_bandwidth.py")
    takes = {
        f"{n} threads": partial(sample, probe, {"threads": n}, poll=False)
        for n in sorted({1, count})
    }
    work = _work(opened, count, shapes)
    takes["steps"] = partial(sample, (sys.executable, WORKERS / "step_times.py"), work, poll=False)
    taken = take_turns(takes, runs, "measuring")
    steps = _steps(opened, shapes, taken["steps"].used)
    probes = {name: samples for name, samples in taken.items() if name != "steps"}
    if as_json:
        click.echo(json.dumps(_data(opened, count, probes, steps), indent=2))
        return
    click.echo("\n".join(page(opened.manifest.name, probes, steps)))
    for name, samples in taken.items():
        if note := remark(name, samples):
            click.echo(f"\n{note}", err=True)


def step_bytes(weights: int, kv: KVEntry, rows: int, context: int) -> int:
    """What a decode step reads: the weights once, keys and values of every row."""
    token = kv_bytes_per_token(kv)
    assert token is not None  # the backend that ran it knows the type
    return weights + rows * context * token


def _work(artifact: Artifact, threads: int, shapes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    draw = partial(random.Random(20).choices, ordinary_ids(artifact.manifest, artifact.engine()))
    batches = [[draw(k=context) for _ in range(rows)] for rows, context in shapes]
    return {
        "model": str(artifact.path),
        "threads": threads,
        "tokens": TOKENS,
        "batches": batches,
    }


def _steps(
    artifact: Artifact, shapes: Sequence[tuple[int, int]], samples: Sequence[Sample]
) -> list[Step]:
    kv, weights = artifact.engine().kv, weight_bytes(artifact)
    return [
        Step(
            rows,
            context,
            step_bytes(weights, kv, rows, context),
            Figure("step", "ms", tuple(one.said["step_s"][at] * 1e3 for one in samples)),
        )
        for at, (rows, context) in enumerate(shapes)
    ]


def probe_figures(name: str, samples: Sequence[Sample]) -> list[Figure]:
    """What the machine reads and computes with so many threads."""
    said = [one.said for one in samples]
    return [
        Figure(f"read, {name}", "GB/s", tuple(one["read_bytes_per_s"] / 1e9 for one in said)),
        Figure(f"fp32 product, {name}", "GFLOP/s", tuple(one["flops"] / 1e9 for one in said)),
    ]


def bandwidth(probes: dict[str, Samples]) -> float:
    """Bytes a second of the best sample: a floor must not be too high."""
    found = (one.said["read_bytes_per_s"] for samples in probes.values() for one in samples.used)
    return float(max(found))


def page(name: str, probes: dict[str, Samples], steps: Sequence[Step]) -> Iterator[str]:
    """Lines for people."""
    where, best = machine.describe(), bandwidth(probes)
    yield name
    yield f"{where['processor']}, {where['cores']} cores\n"
    found = [figure for key, one in probes.items() for figure in probe_figures(key, one.used)]
    yield table(HEADER, [figure.cells() for figure in found])
    yield ""
    header = ("decode step", "reads (MB)", "floor (ms)", "takes (ms)", "of the floor")
    rows = [
        (
            step.name,
            f"{step.read / 1e6:.0f}",
            f"{step.floor(best):.2f}",
            step.seconds.cell(),
            f"{step.share(best):.0%}",
        )
        for step in steps
    ]
    yield table(header, rows)


def _data(
    artifact: Artifact, threads: int, probes: dict[str, Samples], steps: Sequence[Step]
) -> dict[str, Any]:
    best = bandwidth(probes)
    found = [figure for key, one in probes.items() for figure in probe_figures(key, one.used)]
    return {
        "artifact": artifact.manifest.name,
        "precision": artifact.engine().precision,
        "threads": threads,
        "machine": machine.describe(),
        "figures": figures_data(found),
        "steps": [
            {
                "rows": step.rows,
                "context": step.context,
                "bytes": step.read,
                "floor_ms": step.floor(best),
                "step_ms": step.seconds.as_data(),
                "share_of_floor": step.share(best),
            }
            for step in steps
        ],
    }
