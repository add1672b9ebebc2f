"""``enginewright sign``: a signature beside the manifest, over all that the manifest holds."""

from __future__ import annotations

from pathlib import Path

import click

from enginewright.cli.engine_options import ArtifactName


@click.command(
    epilog="Make a key with: openssl genpkey -algorithm ed25519 -out key.pem; its public half "
    "with: openssl pkey -in key.pem -pubout -out key.pub"
)
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option(
    "--key",
    "key_file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The private key, Ed25519 in PEM.",
)
@click.option(
    "--password",
    envvar="ENGINEWRIGHT_KEY_PASSWORD",
    help="Of a key that is encrypted; better given as ENGINEWRIGHT_KEY_PASSWORD.",
)
def command(artifact: Path, key_file: Path, password: str | None) -> None:
    """Sign ARTIFACT, after a check of every file of it, and print the signature's path.

    What is signed (an in-toto statement with SLSA's provenance, in a DSSE envelope) names the
    manifest's hash, and the manifest that of every file. Nothing else of the artifact is changed.
    """
    from enginewright.runtime.artifact.artifact import Artifact
    from enginewright.runtime.trust.keys import private_key
    from enginewright.runtime.trust.signing import sign

    key = private_key(key_file, password.encode() if password else None)
    click.echo(sign(Artifact.open(artifact, verify="always"), key))
