"""``enginewright pull``: an artifact out of an OCI registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginewright.cli.engine_options import policy_option, signature_option
from enginewright.cli.push import plain_http_option
from enginewright.cli.text import size
from enginewright.runtime.errors import NotInRegistryError

if TYPE_CHECKING:
    from enginewright.runtime.artifact.artifact import Artifact
    from enginewright.runtime.trust.policy import Policy


@click.command()
@click.argument("reference", metavar="oci://HOST/REPOSITORY[:TAG][@sha256:DIGEST]")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("artifacts"),
    show_default=True,
    help="Folder in which the artifact's own folder is made.",
)
@signature_option
@policy_option
@click.option(
    "--if-there", is_flag=True, help="Where the registry has no manifest of the name, do nothing."
)
@plain_http_option
def command(
    reference: str,
    output: Path,
    keys: tuple[Path, ...],
    policy: Policy | None,
    if_there: bool,
    plain_http: bool,
) -> None:
    """Pull an artifact, check every byte of it, and print its path.

    It appears at once, or not at all: not before every hash is right, the signature too where one
    is asked for. After a connection that was cut off, the same command goes on where it ended.
    """
    from enginewright.runtime.registry.reference import Reference
    from enginewright.runtime.registry.transfer import pull

    def check(artifact: Artifact) -> None:
        from enginewright.runtime.trust.signing import check_signature

        if keys:
            check_signature(artifact, keys)
        if policy is not None:
            policy.check(artifact, "always")

    try:
        moved = pull(
            Reference.parse(reference), output, plain_http=plain_http, check=check, tell=_tell
        )
    except NotInRegistryError:
        if not if_there:
            raise
        _tell(f"{reference}: is not there")
        return
    click.echo(f"{size(moved.moved)} fetched, {size(moved.spared)} here already", err=True)
    click.echo(moved.path)


def _tell(line: str) -> None:
    click.echo(line, err=True)
