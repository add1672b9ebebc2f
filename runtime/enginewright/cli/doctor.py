"""``enginewright doctor``: will this artifact run here, and if not, what is missing?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginewright.cli.engine_options import ArtifactName, native_code_option
from enginewright.runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from enginewright.runtime.doctor.diagnosis import Diagnosis, Machine, PlanReport
    from enginewright.runtime.doctor.facts import DriverFacts
    from enginewright.runtime.doctor.findings import Finding


def _described(ctx: click.Context, param: click.Parameter, value: str | None) -> DriverFacts | None:
    """The device that --device describes."""
    from enginewright.runtime.doctor.facts import described_device

    try:
        return None if value is None else described_device(value)
    except EnginewrightError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@click.command()
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option(
    "--device",
    callback=_described,
    metavar="CC[:MEMORY]",
    help="Ask about a GPU that is not here, such as 8.6 or 8.6:24GiB.",
)
@click.option("--max-batch", type=click.IntRange(min=1), help="Rows that run together.")
@click.option("--max-context", type=click.IntRange(min=2), help="Tokens that a row may hold.")
@native_code_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    artifact: Path,
    device: DriverFacts | None,
    max_batch: int | None,
    max_context: int | None,
    allow_native_code: bool | None,
    as_json: bool,
) -> None:
    """Say whether ARTIFACT runs here, from its headers and this machine. Needs no GPU.

    Exit code 0 when a plan of it runs, 1 when none does.
    """
    from enginewright.runtime.doctor.diagnosis import diagnose
    from enginewright.runtime.options import EngineOptions

    options = EngineOptions(
        max_batch=max_batch, max_context=max_context, allow_native_code=allow_native_code
    )
    diagnosis = diagnose(artifact, _machine(device), options)
    if as_json:
        data = {"artifact": str(artifact), **diagnosis.as_data()}
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_page(artifact, diagnosis)))
    if diagnosis.chosen is None:
        ctx.exit(1)


def _machine(described: DriverFacts | None) -> Machine:
    from enginewright.runtime.doctor.diagnosis import Machine
    from enginewright.runtime.doctor.driver import read_driver
    from enginewright.runtime.doctor.host import read_host
    from enginewright.runtime.doctor.installed import read_installed

    return Machine(described or read_driver(), read_host(), read_installed())


def _page(artifact: Path, diagnosis: Diagnosis) -> Iterator[str]:
    yield f"artifact {artifact}"
    yield from _lines(diagnosis.findings)
    for plan in diagnosis.plans:
        yield f"\nplan {plan.plan} ({plan.target}, {plan.precision})"
        yield from _lines(plan.findings)
    yield ""
    yield from _verdict(diagnosis)


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    from enginewright.runtime.doctor.codes import MEANINGS

    for finding in findings:
        title = MEANINGS[finding.code].title
        code = "" if finding.status == "ok" else f"  [{finding.code}]"
        yield f"  {finding.status:<8} {title:<18} {finding.found}{code}"
        indent = " " * 30
        if finding.needed:
            yield f"{indent}needed: {finding.needed}"
        if finding.action:
            yield f"{indent}to do: {finding.action}"


def _verdict(diagnosis: Diagnosis) -> Iterator[str]:
    chosen = diagnosis.chosen
    where = "on the described device" if diagnosis.described else "here"
    for plan in diagnosis.plans:
        if not plan.runs:
            yield f"plan {plan.plan} is passed over: {_reason(plan)}"
    if diagnosis.described and not any(plan.for_gpu for plan in diagnosis.plans):
        yield "no plan of it is for a GPU: the described device was not asked about"
        where = "here"
    if chosen is not None:
        yield f"verdict: runs {where}, plan {chosen.plan} ({chosen.target})"
    else:
        yield f"verdict: does not run {where}"


def _reason(plan: PlanReport) -> str:
    first = plan.problems[0]
    needed = f" (needed: {first.needed})" if first.needed else ""
    return f"{first.found}{needed} [{first.code}]"
