"""``enginewright diff``: two artifacts beside each other, and a gate between them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginewright.cli.engine_options import ArtifactName, engine_options

if TYPE_CHECKING:
    from enginewright.cli.diff.changes import Change
    from enginewright.cli.diff.conversations import Rendering
    from enginewright.cli.diff.gate import Gate
    from enginewright.cli.diff.measures import Measure
    from enginewright.cli.diff.speed import Rules
    from enginewright.runtime.artifact.artifact import Artifact


@click.command(
    epilog="Quality is what the builds measured, or with --score what both answer now. Speed is "
    "never taken from a file: both are run here, in turns. A gate that bounds a speed has it "
    "measured by itself."
)
@click.argument("a", type=ArtifactName(path_type=Path))
@click.argument("b", type=ArtifactName(path_type=Path))
@click.option(
    "--gate",
    "gate_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="How much worse B may be (docs/promoting.md); exit code 1 for a breach.",
)
@click.option("--speed", is_flag=True, help="Run both in turns and compare their speed.")
@click.option("--score", is_flag=True, help="Hold both to their reference again, here and now.")
@click.option(
    "--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Of --speed."
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    a: Path,
    b: Path,
    gate_file: Path | None,
    speed: bool,
    score: bool,
    runs: int,
    threads: int | None,
    allow_native_code: bool | None,
    as_json: bool,
) -> None:
    """Say what is another one in artifact B than in A: what was built, from what, how good it is.

    Exit code 1 when B breaches the gate; without one, 0 whatever differs.
    """
    from enginewright.cli.diff.speed import speeds
    from enginewright.runtime.artifact.artifact import Artifact

    gate = _gate(gate_file)
    opened = Artifact.open(a), Artifact.open(b)
    found = _found(*opened, score, threads, allow_native_code)
    rules = _rules(gate, speed, runs, threads, allow_native_code)
    found.measures += speeds(*opened, rules)
    breaches = [] if gate is None else found.breaches(gate)
    if as_json:
        click.echo(json.dumps(found.as_data(gate, breaches), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(found.page(gate, breaches)))
    if breaches:
        ctx.exit(1)


def _gate(path: Path | None) -> Gate | None:
    from enginewright.cli.diff.gate import read_gate
    from enginewright.cli.settings_file import read_settings

    return None if path is None else read_gate(read_settings(path), str(path))


def _found(
    a: Artifact, b: Artifact, score: bool, threads: int | None, allow_native_code: bool | None
) -> Found:
    from enginewright.cli.diff import measures
    from enginewright.cli.diff.changes import changes
    from enginewright.cli.diff.conversations import renderings

    quality = (
        measures.scored(a, b, threads=threads, allow_native_code=allow_native_code)
        if score
        else measures.quality(a, b)
    )
    return Found(a, b, changes(a, b), renderings(a, b), [*quality, *measures.costs(a, b)])


def _rules(
    gate: Gate | None, asked: bool, runs: int, threads: int | None, allow_native_code: bool | None
) -> Rules:
    from enginewright.cli.bench import machine
    from enginewright.cli.diff.speed import USUAL, Rules

    wanted = [*(USUAL if asked else ()), *(gate.speeds if gate else ())]
    works = tuple(dict.fromkeys(wanted))
    return Rules(works, runs, threads or machine.cores(), allow_native_code)


@dataclass
class Found:
    """Everything that was compared."""

    a: Artifact
    b: Artifact
    changes: list[Change]
    renderings: list[Rendering]
    measures: list[Measure]

    def breaches(self, gate: Gate) -> list[str]:
        """What B does that the gate forbids."""
        from enginewright.cli.diff.measures import plans

        differ = bool(self.renderings)
        return gate.breaches(self.changes, differ, self.measures, plans(self.a, self.b))

    def as_data(self, gate: Gate | None, breaches: list[str]) -> dict[str, Any]:
        """Plain data for --json."""
        judged = None if gate is None else {"passed": not breaches, "breaches": breaches}
        return {
            "a": {"artifact": str(self.a.path), "digest": self.a.digest()},
            "b": {"artifact": str(self.b.path), "digest": self.b.digest()},
            "changes": [asdict(change) for change in self.changes],
            "renderings": [asdict(rendering) for rendering in self.renderings],
            "measures": [{"name": each.name, **each.as_data()} for each in self.measures],
            "gate": judged,
        }

    def page(self, gate: Gate | None, breaches: list[str]) -> Iterator[str]:
        """Lines for people."""
        from enginewright.cli.diff.conversations import CONVERSATIONS
        from enginewright.cli.diff.page import change_lines, measure_lines, template_lines

        yield f"A  {self.a.path}  ({self.a.digest()})"
        yield f"B  {self.b.path}  ({self.b.digest()})"
        yield from change_lines(self.changes)
        yield from template_lines(self.renderings, len(CONVERSATIONS))
        yield from measure_lines(self.measures)
        if gate is not None:
            yield f"\ngate: {'FAILED' if breaches else 'passed'}"
            yield from (f"  {breach}" for breach in breaches)
