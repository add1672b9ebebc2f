"""``enginewright verify``: hash every file, run the engine against the stored reference values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginewright.cli.engine_options import ArtifactName, engine_options
from enginewright.cli.inspect import conformance_row
from enginewright.cli.text import table

if TYPE_CHECKING:
    from enginewright.runtime.conformance import Report


@click.command()
@click.argument("artifact", type=ArtifactName(path_type=Path))
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    artifact: Path,
    threads: int | None,
    allow_native_code: bool | None,
    as_json: bool,
) -> None:
    """Check ARTIFACT: every file's hash, and its answers. Needs no torch.

    Exit code 1 when a file is not as it was built, or a bound of the recipe is missed.
    """
    from enginewright.runtime.conformance import verify_artifact

    results = verify_artifact(artifact, threads=threads, allow_native_code=allow_native_code)
    passed = all(isinstance(result, str) or result.passed for result in results.values())
    if as_json:
        plans = {plan: _data(result) for plan, result in results.items()}
        data = {"artifact": str(artifact), "passed": passed, "plans": plans}
        click.echo(json.dumps(data, indent=2))
    else:
        for plan, result in results.items():
            click.echo(f"plan {plan}\n{_page(result)}")
        click.echo(_verdict(results, passed))
    if not passed:
        ctx.exit(1)


def _verdict(results: Mapping[str, Report | str], passed: bool) -> str:
    if not passed:
        return "FAILED: a bound of the recipe is missed"
    skipped = ", ".join(plan for plan, result in results.items() if isinstance(result, str))
    return f"passed; not run: {skipped}" if skipped else "passed"


def _page(result: Report | str) -> str:
    if isinstance(result, str):
        return f"  not run: {result}"
    rows = [conformance_row(r.name, r.value, r.bound, r.passed) for r in result.rows]
    return table(("measure", "value", "bound", "result"), rows)


def _data(result: Report | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {"not_run": result}
    return {"passed": result.passed, "rows": result.as_dict()["rows"]}
