"""``enginewright verify``: hash every file, run the engines against the stored reference values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginewright.cli.engine_options import (
    ArtifactName,
    engine_options,
    policy_option,
    signature_option,
)
from enginewright.cli.inspect import conformance_row
from enginewright.cli.text import number, table
from enginewright.runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from enginewright.runtime.trust.policy import Policy
    from enginewright.runtime.verification import PlanResult

    Results = Mapping[str, PlanResult]


@click.command()
@click.argument("artifact", type=ArtifactName(path_type=Path))
@engine_options
@policy_option
@signature_option
@click.option(
    "--attest/--no-attest",
    default=None,
    help="Write what was measured to the artifact's evidence/; by default where a GPU ran.",
)
@click.option("--require-device", is_flag=True, help="Fail unless every plan has run here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    artifact: Path,
    threads: int | None,
    allow_native_code: bool | None,
    policy: Policy | None,
    keys: tuple[Path, ...],
    attest: bool | None,
    require_device: bool,
    as_json: bool,
) -> None:
    """Check ARTIFACT: every file's hash, and its answers. Needs no torch.

    Files that the manifest does not list, and a bill of materials that does not follow from it,
    are noted. Exit code 1 when a file is not as it was built, a bound of the recipe is missed, an
    engine fails while it runs, or none runs here for another reason than that its GPU is not here.
    """
    from enginewright.runtime.artifact.artifact import Artifact
    from enginewright.runtime.verification import remarks, verify_artifact

    signer = _signer(artifact, keys)
    results = verify_artifact(
        artifact,
        threads=threads,
        allow_native_code=allow_native_code,
        policy=policy,
        timed=bool(attest),
    )
    written = _attest(artifact, results, attest)
    notes = remarks(Artifact.open(artifact, verify="never"))
    passed = all(result.passed for result in results.values())
    lacking = [plan for plan, result in results.items() if result.report is None]
    if as_json:
        data = {
            "artifact": str(artifact),
            "passed": passed,
            "device_run": not lacking,
            "signed_by": signer,
            "attestation": None if written is None else str(written),
            "notes": notes,
            "plans": {plan: _data(result) for plan, result in results.items()},
        }
        click.echo(json.dumps(data, indent=2))
    else:
        if signer is not None:
            click.echo(f"signed by {signer}")
        click.echo("\n".join([*_page(results, written), *(f"note: {note}" for note in notes)]))
        click.echo(_verdict(results, passed, lacking))
    if not passed or (require_device and lacking):
        ctx.exit(1)


def _signer(artifact: Path, keys: tuple[Path, ...]) -> str | None:
    """The id of the key that signed it, if one has to have."""
    from enginewright.runtime.artifact.artifact import Artifact
    from enginewright.runtime.trust.signing import check_signature

    return check_signature(Artifact.open(artifact), keys) if keys else None


def _attest(artifact: Path, results: Results, asked: bool | None) -> Path | None:
    """The attestation that was written; one that nobody asked for may fail."""
    from enginewright.runtime.artifact.artifact import Artifact
    from enginewright.runtime.attestation import attest

    ran = [result for result in results.values() if result.report is not None]
    by_itself = asked is None and any(result.for_gpu for result in ran)
    if not ran or not (asked or by_itself):
        return None
    try:
        return attest(Artifact.open(artifact, verify="never"), results)
    except EnginewrightError as error:
        if asked:
            raise
        click.echo(f"warning: {error}", err=True)
        return None


def _page(results: Results, written: Path | None) -> Iterator[str]:
    for plan, result in results.items():
        yield f"plan {plan}"
        yield from _plan(result)
    if written is not None:
        yield f"attestation {written}"


def _plan(result: PlanResult) -> Iterator[str]:
    if result.report is None:
        if result.for_gpu:
            yield f"  graph: {result.built or 'not measured'} at build"
            yield f"  device: not run here ({result.reason})"
        else:
            yield f"  not run: {result.reason}"
        return
    rows = [conformance_row(r.name, r.value, r.bound, r.passed) for r in result.report.rows]
    yield table(("measure", "value", "bound", "result"), rows)
    if result.speed is not None:
        prefill, decode = (
            number(result.speed.prefill_tokens_per_second),
            number(result.speed.decode_tokens_per_second),
        )
        yield (
            f"speed: prefill {prefill} tokens/s ({result.speed.prompt_tokens} tokens), "
            f"decode {decode} tokens/s, one row"
        )


def _verdict(results: Results, passed: bool, lacking: list[str]) -> str:
    if not passed:
        return "FAILED: a bound of the recipe is missed"
    if not lacking:
        return "passed"
    if any(results[plan].absent for plan in lacking):
        return f"every hash is right; the device has not been run: plan {', '.join(lacking)}"
    return f"passed; not run: {', '.join(lacking)}"


def _data(result: PlanResult) -> dict[str, Any]:
    if result.report is None:
        graph = {"graph": result.built} if result.for_gpu else {}
        return {"not_run": result.reason, **graph}
    speed = {"speed": vars(result.speed)} if result.speed is not None else {}
    return {"passed": result.report.passed, "rows": result.report.as_dict()["rows"], **speed}
