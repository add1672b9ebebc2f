"""GGUF files, mapped: metadata and the places of tensors, read without touching tensor data.

The gguf package's own reader makes an object of every token and merge: 2.8 s and 160 MB for a
model of 98 MB. Here arrays of numbers stay mapped, and arrays of strings are only counted.

| array | shape                         | dtype | meaning                                        |
|-------|-------------------------------|-------|------------------------------------------------|
| data  | [..., bytes of a row]         | uint8 | blocks, or plain numbers, as stored            |
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from enginewright.runtime.errors import SourceError, UnsupportedModelError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, np.dtype[Any]] = {
    number: np.dtype(code)
    for number, code in enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))
} | {10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor; ``shape`` is in the order of torch."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class GgufFile:
    """A file's metadata and tensors. An array of strings in the metadata is its length."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture's own section."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        """The same; raises SourceError if it is missing."""
        found = self.get(key)
        if found is None:
            raise SourceError(f"{self.path}: damaged: no {self.architecture}.{key} in its metadata")
        return found


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_gguf(path: Path) -> GgufFile:
    """Read metadata and the table of tensors; raises SourceError for a truncated file."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    if not is_gguf(path):
        raise SourceError(f"{path}: not a GGUF file: it does not begin with {MAGIC.decode()}")
    reader = _Reader(np.asarray(np.memmap(path, np.uint8, "r")))
    try:
        metadata, table = reader.header()
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise SourceError(f"{path}: truncated or damaged in its header ({error!r})") from error
    if not isinstance(metadata.get("general.architecture"), str):
        raise SourceError(f"{path}: damaged: no general.architecture in its metadata")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise SourceError(f"{path}: damaged: general.alignment is {alignment!r}")
    start = -(-reader.position // alignment) * alignment
    tensors = {name: _tensor(path, reader.blob, start, name, *row) for name, row in table.items()}
    return GgufFile(path, metadata, tensors)


def _tensor(
    path: Path,
    blob: NDArray[np.uint8],
    start: int,
    name: str,
    shape: tuple[int, ...],
    number: int,
    offset: int,
) -> GgufTensor:
    if number not in set(GGMLQuantizationType):
        raise UnsupportedModelError(f"{path}: {name} is stored as ggml type {number}, unknown here")
    kind = GGMLQuantizationType(number)
    per_block, block_bytes = GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % per_block:
        raise SourceError(f"{path}: damaged: {name} of shape {shape} is stored as {kind.name}")
    row_bytes = shape[-1] // per_block * block_bytes
    begin = start + offset
    end = begin + math.prod(shape[:-1]) * row_bytes
    if end > blob.shape[0]:
        raise SourceError(
            f"{path}: truncated: {name} ends at byte {end}, the file has {blob.shape[0]}; "
            f"fetch the file again"
        )
    return GgufTensor(kind, shape, blob[begin:end].reshape(*shape[:-1], row_bytes))


class _Reader:
    """A position in the header of a mapped file."""

    def __init__(self, blob: NDArray[np.uint8]) -> None:
        self.blob = blob
        self._buffer = blob.data
        self.position = 0

    def header(self) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, int]]]:
        """The metadata, and (shape, type, offset) of each tensor."""
        _, version, tensors, entries = self._unpack("<4sIQQ")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}; versions {_VERSIONS} of little endian are read")
        metadata = {}
        for _ in range(entries):
            key = self._string()
            metadata[key] = self._value(*self._unpack("<I"))
        table = {}
        for _ in range(tensors):
            name = self._string()
            shape = tuple(reversed(self._unpack(f"<{self._unpack('<I')[0]}Q")))
            number, offset = self._unpack("<IQ")
            table[name] = (shape, number, offset)
        return metadata, table

    def _unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._buffer, self.position)
        self.position += struct.calcsize(form)
        return values

    def _take(self, size: int) -> NDArray[np.uint8]:
        taken = self.blob[self.position : self.position + size]
        if taken.shape[0] != size:
            raise ValueError(f"{size} bytes wanted at byte {self.position}")
        self.position += size
        return taken

    def _string(self) -> str:
        return self._take(self._unpack("<Q")[0]).tobytes().decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._numbers(kind, 1)[0].item()
        element, count = self._unpack("<IQ")
        if element != _STRING:
            return self._numbers(element, count)
        for _ in range(count):
            length = self._unpack("<Q")[0]
            self.position += length  # past the end, the next read fails
        return count

    def _numbers(self, kind: int, count: int) -> NDArray[Any]:
        dtype = _SCALARS[kind]
        return self._take(count * dtype.itemsize).view(dtype)
