"""Signatures of an artifact: envelopes in its evidence/, over a statement about its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import MANIFEST_NAME, parse_manifest
from enginewright.runtime.atomic import write_text
from enginewright.runtime.errors import EnginewrightError, IntegrityError, SignatureError
from enginewright.runtime.trust.dsse import IN_TOTO, Envelope
from enginewright.runtime.trust.keys import key_id, public_key
from enginewright.runtime.trust.provenance import payload, subject_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURES = "evidence/signatures"
_SUFFIX = ".dsse.json"
_LARGEST, _MOST = 1 << 20, 64


def sign(artifact: Artifact, key: Ed25519PrivateKey) -> Path:
    """Write the key's signature of the artifact; an earlier one of the same key is replaced.

    Raises EnginewrightError where the folder cannot be written.
    """
    told = payload(artifact.manifest, _digest_of(artifact))
    envelope = Envelope.sign(told, IN_TOTO, key)
    path = artifact.evidence(f"{SIGNATURES}/{_name(key.public_key())}")
    try:
        write_text(path, envelope.to_json())
    except OSError as error:
        raise EnginewrightError(
            f"{path}: the signature cannot be written ({error.strerror}); sign a copy of the "
            f"artifact in a folder that you may write to"
        ) from error
    return path


def check_signature(artifact: Artifact, key_files: Sequence[Path]) -> str:
    """The id of the key, of those in the files, that signed the artifact as it was opened.

    Raises SignatureError where none did.
    """
    keys = [public_key(path) for path in key_files]
    digest = _digest_of(artifact)
    met = []
    paths = _paths(artifact.path, [_name(key) for key in keys])
    for envelope in _envelopes(paths[:_MOST]):
        met += [name[:16] for name, _ in envelope.signatures]
        about = subject_of(envelope.payload) if envelope.payload_type == IN_TOTO else None
        if about == digest and (signer := envelope.signer(keys)) is not None:
            return signer
    wanted = ", ".join(key_id(key)[:16] for key in keys)
    found = f"signatures name {', '.join(met)}" if met else f"{SIGNATURES} holds no signature"
    if paths[_MOST:]:
        found += f" in the {_MOST} files that were read, and {len(paths) - _MOST} more were not"
    raise SignatureError(
        f"{artifact.path}: is not signed by a trusted key ({wanted}) as it is now: {found}. Take "
        f"the artifact from where it was signed, or sign it: enginewright sign"
    )


def _digest_of(artifact: Artifact) -> str:
    """Of the manifest's bytes; those that lie there now must say what was read before."""
    text = (artifact.path / MANIFEST_NAME).read_bytes()
    if parse_manifest(text.decode(), str(artifact.path / MANIFEST_NAME)) != artifact.manifest:
        raise IntegrityError(f"{artifact.path}: the manifest was exchanged while it was read")
    return hashlib.sha256(text).hexdigest()


def _name(key: Ed25519PublicKey) -> str:
    return f"{key_id(key)[:16]}{_SUFFIX}"


def _paths(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of signatures; those that ``sign`` would call so are the first."""
    found = (folder / SIGNATURES).glob(f"*{_SUFFIX}")
    return sorted(found, key=lambda path: (path.name not in names, path.name))


def _envelopes(paths: Sequence[Path]) -> Iterator[Envelope]:
    """What can be read; a damaged one must not hide another."""
    for path in paths:
        try:
            if path.stat().st_size <= _LARGEST:
                yield Envelope.parse(path.read_text("utf-8"), str(path))
        except (OSError, UnicodeDecodeError, SignatureError):
            continue
