"""``enginewright push``: an artifact into an OCI registry."""

from __future__ import annotations

from pathlib import Path

import click

from enginewright.cli.engine_options import ArtifactName
from enginewright.cli.text import size

plain_http_option = click.option(
    "--plain-http", is_flag=True, help="Speak to a registry elsewhere without TLS."
)


@click.command(
    epilog="Logins are those of docker login, podman login or oras login. A registry on this "
    "machine is spoken to without TLS."
)
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.argument("reference", metavar="oci://HOST/REPOSITORY[:TAG]")
@plain_http_option
def command(artifact: Path, reference: str, plain_http: bool) -> None:
    """Push ARTIFACT, a layer for each file; print the reference with its digest.

    Files that the registry has, from this artifact or another one, are not sent again; neither
    are those that an earlier push that was cut off has sent.
    """
    from enginewright.runtime.registry.reference import Reference
    from enginewright.runtime.registry.transfer import push

    moved = push(artifact, Reference.parse(reference), plain_http=plain_http, tell=_tell)
    click.echo(f"{size(moved.moved)} sent, {size(moved.spared)} there already", err=True)
    click.echo(str(moved.reference))


def _tell(line: str) -> None:
    click.echo(line, err=True)
