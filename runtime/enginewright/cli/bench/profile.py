"""``enginewright bench profile``: which operators a decode step spends its time in."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import WORKERS, sample
from enginewright.cli.bench.options import measurement
from enginewright.cli.bench.stats import Figure
from enginewright.cli.bench.turns import remark, take_turns
from enginewright.cli.bench.workload import most_rows
from enginewright.cli.text import table
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends import load_backend

STEPS = 20


@dataclass(frozen=True)
class Share:
    """Operators of one type: how many a step runs, and what they take together."""

    name: str
    nodes: int
    taken: Figure


@click.command(
    epilog="The times are those of ONNX Runtime's profiler, medians over steps of processes of "
    "their own. Profiling takes time itself: a step without it stands beside the sum, and what is "
    "beyond the sum is spent between operators."
)
@click.option("--rows", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--context", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--plan", help="Of the artifact's engines; by default the one that runs here.")
@measurement(runs=3)
def command(
    artifact: Path,
    runs: int,
    threads: int | None,
    as_json: bool,
    rows: int,
    context: int,
    plan: str | None,
) -> None:
    """Show which operators of ARTIFACT a decode step spends its time in."""
    opened = Artifact.open(artifact)
    engine = opened.engine()
    load_backend(engine.target)
    if engine.target != "cpu":
        raise click.UsageError(f"{opened.manifest.name} is for {engine.target}; this profiles CPUs")
    if rows > (most := most_rows(engine)):
        raise click.UsageError(f"--rows {rows}: this engine takes at most {most}")
    if context >= (longest := engine.limits.max_context):
        raise click.UsageError(f"--context {context}: this engine has room for {longest - 1}")
    count = threads or machine.cores()
    work = {
        "model": str(artifact),
        "threads": count,
        "plan": plan,
        "rows": rows,
        "context": context,
        "steps": STEPS,
    }
    take = partial(sample, (sys.executable, WORKERS / "operator_times.py"), work, poll=False)
    samples = take_turns({"profile": take}, runs, "profiling")["profile"]
    said = [one.said for one in samples.used]
    head = f"{opened.manifest.name}, plan {said[0]['plan']}, {count} threads: " + (
        f"decode step of {rows} row{'s' if rows > 1 else ''} at {context}"
    )
    step = Figure("step", "ms", tuple(one["step_s"] * 1e3 for one in said))
    if as_json:
        click.echo(json.dumps(_data(head, step, shares(said)), indent=2))
        return
    click.echo("\n".join(page(head, step, shares(said))))
    if note := remark("profile", samples):
        click.echo(f"\n{note}", err=True)


def shares(said: Sequence[Mapping[str, Any]]) -> list[Share]:
    """What the samples say of each operator, the most expensive first."""
    found = [
        Share(
            name,
            nodes,
            Figure(name, "ms", tuple(one["operators"][name][1] * 1e3 for one in said)),
        )
        for name, (nodes, _) in said[0]["operators"].items()
    ]
    return sorted(found, key=lambda share: -share.taken.median)


def page(head: str, step: Figure, found: Sequence[Share]) -> Iterator[str]:
    """Lines for people."""
    total = sum(share.taken.median for share in found)
    yield f"{head}\n{machine.describe()['processor']}, {machine.describe()['cores']} cores\n"
    rows = [(s.name, str(s.nodes), s.taken.cell(), f"{s.taken.median / total:.1%}") for s in found]
    rows.append(("all of them", str(sum(s.nodes for s in found)), f"{total:.3g}", ""))
    yield table(("operator", "nodes", "ms of a step", "share"), rows)
    yield f"\na step, not profiled: {step.cell()} ms"


def _data(head: str, step: Figure, found: Sequence[Share]) -> dict[str, Any]:
    return {
        "what": head,
        "machine": machine.describe(),
        "step_ms": step.as_data(),
        "operators": {s.name: {"nodes": s.nodes, "ms": s.taken.as_data()} for s in found},
    }
