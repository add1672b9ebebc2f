"""DSSE, the envelope of a signature: the payload, its type, and signatures over both.

https://github.com/secure-systems-lab/dsse, version 1: what is signed is PAE(type, payload), so
that a payload can never be taken for one of another type.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enginewright.runtime.errors import SignatureError
from enginewright.runtime.trust.keys import key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

IN_TOTO = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Envelope:
    """``signatures``: pairs of a key's id, which proves nothing, and a signature."""

    payload: bytes
    payload_type: str
    signatures: tuple[tuple[str, bytes], ...]

    @classmethod
    def sign(cls, payload: bytes, payload_type: str, key: Ed25519PrivateKey) -> Envelope:
        """The payload with one signature."""
        signature = key.sign(_signed(payload_type, payload))
        return cls(payload, payload_type, ((key_id(key.public_key()), signature),))

    @classmethod
    def parse(cls, text: str, where: str) -> Envelope:
        """Read an envelope; raises SignatureError for what is none."""
        try:
            data = json.loads(text)
            signatures = tuple(
                (str(each.get("keyid", "")), _decoded(each["sig"])) for each in data["signatures"]
            )
            return cls(_decoded(data["payload"]), str(data["payloadType"]), signatures)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SignatureError(f"{where}: is no DSSE envelope ({error!r})") from error

    def to_json(self) -> str:
        """The envelope's text."""
        data = {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": name, "sig": base64.b64encode(signature).decode()}
                for name, signature in self.signatures
            ],
        }
        return json.dumps(data, indent=2) + "\n"

    def signer(self, keys: Iterable[Ed25519PublicKey]) -> str | None:
        """The id of the first of the keys that one of the signatures was made with."""
        from cryptography.exceptions import InvalidSignature

        signed = _signed(self.payload_type, self.payload)
        for key in keys:
            for _, signature in self.signatures:
                try:
                    key.verify(signature, signed)
                except InvalidSignature:
                    continue
                return key_id(key)
        return None


def _signed(payload_type: str, payload: bytes) -> bytes:
    """PAE, the pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
