"""Ed25519 keys in PEM files, as ``openssl genpkey -algorithm ed25519`` writes them.

A key's id is the SHA-256 of its public half (the DER of its SubjectPublicKeyInfo), in hex.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from enginewright.runtime.errors import MissingDependencyError, SettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_LARGEST = 1 << 16
_MAKE = "openssl genpkey -algorithm ed25519 -out key.pem"
_PUBLISH = "openssl pkey -in key.pem -pubout -out key.pub"


def private_key(path: Path, password: bytes | None = None) -> Ed25519PrivateKey:
    """The key that signs; raises SettingsError for another kind of file, or a wrong password."""
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    def read(pem: bytes) -> object:
        return load_pem_private_key(pem, password)

    key = _loaded(path, read, f"a private key; make one with: {_MAKE}")
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_algorithm(path)
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The key that signatures are checked with; raises SettingsError for another kind of file."""
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    made = f"a public key; make one of a private key with: {_PUBLISH}"
    key = _loaded(path, load_pem_public_key, made)
    if not isinstance(key, Ed25519PublicKey):
        raise _other_algorithm(path)
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """What names a key in a signature."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _loaded(path: Path, read: Callable[[bytes], object], wanted: str) -> object:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        with path.open("rb") as file:
            return read(file.read(_LARGEST))
    except OSError as error:
        raise SettingsError(f"{path}: the key cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{path}: is not {wanted} ({error})") from error


def _other_algorithm(path: Path) -> SettingsError:
    return SettingsError(f"{path}: is a key of another algorithm; it must be Ed25519: {_MAKE}")


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "signatures need cryptography: pip install 'enginewright[sign]'"
        ) from error
