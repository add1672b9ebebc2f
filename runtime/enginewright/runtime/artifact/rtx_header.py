"""The first bytes of a TensorRT-RTX engine, as far as they could be told from engines of 1.7.

| bytes  | meaning                                       |
|--------|-----------------------------------------------|
| 0-3    | ``vtrt``                                      |
| 16-23  | length of the whole engine, little endian     |
| 24-27  | version: major, minor, patch, build           |
| 28-31  | ``vtrt``                                      |
| 32     | compute capabilities, a bit each              |
| -63    | unknown, up to the end of the header          |

NVIDIA documents none of it: what does not agree with this table may be another layout.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LAYOUT = struct.Struct("<4s12xQ4B4sB31x")
_MAGIC = b"vtrt"
_BITS = {"7.5": 0x01, "8.0": 0x02, "8.6": 0x04, "8.9": 0x08, "12.0": 0x10, "12.1": 0x20}


@dataclass(frozen=True)
class RtxHeader:
    """What an engine's header says. ``length``: of the file in bytes; ``known``: whether the second
    magic number stands where it was seen."""

    length: int
    version: tuple[int, int, int, int]
    known: bool
    bits: int

    @classmethod
    def read(cls, path: Path) -> RtxHeader | None:
        """None where the file does not begin as an engine does."""
        with path.open("rb") as file:
            head = file.read(_LAYOUT.size)
        if len(head) < _LAYOUT.size or not head.startswith(_MAGIC):
            return None
        _, length, *version, second, bits = _LAYOUT.unpack(head)
        return cls(length, tuple(version), second == _MAGIC, bits)

    def lacking(self, capabilities: Sequence[str]) -> list[str]:
        """Those of the capabilities that the engine is not for."""
        return [name for name in capabilities if not _BITS.get(name, 0) & self.bits]
