"""``enginewright verify``: hash every file, run the engine against the stored reference values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginewright.cli.inspect import conformance_row
from enginewright.cli.text import table

if TYPE_CHECKING:
    from enginewright.runtime.conformance import Report


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), help="By default all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, artifact: Path, threads: int | None, as_json: bool) -> None:
    """Check ARTIFACT: every file's hash, and its answers. Needs no torch.

    Exit code 1 when a file is not as it was built, or a bound of the recipe is missed.
    """
    from enginewright.runtime.conformance import verify_artifact

    report = verify_artifact(artifact, threads=threads)
    if as_json:
        click.echo(json.dumps({"artifact": str(artifact), **_data(report)}, indent=2))
    else:
        rows = [conformance_row(r.name, r.value, r.bound, r.passed) for r in report.rows]
        click.echo(table(("measure", "value", "bound", "result"), rows))
        click.echo("passed" if report.passed else "FAILED: a bound of the recipe is missed")
    if not report.passed:
        ctx.exit(1)


def _data(report: Report) -> dict[str, Any]:
    return {"passed": report.passed, "rows": report.as_dict()["rows"]}
