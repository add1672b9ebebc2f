"""Safetensors files, mapped: the header is checked, tensors are views of the file.

| array      | shape         | dtype                   | meaning                               |
|------------|---------------|-------------------------|---------------------------------------|
| stored     | of the tensor | as stored; bf16: uint16 | a read-only view of the mapped file   |
| rows(a, b) | [b - a, ...]  | float32                 | converted on demand; F32 stays mapped |
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.builder.weights import Weight
from enginewright.runtime.errors import SourceError, UnsupportedModelError

# As the format names them. A bfloat16 is read as the upper half of a float32.
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


class StoredWeight(Weight):
    """A tensor stored as plain numbers."""

    def __init__(self, stored: NDArray[Any], bfloat16: bool = False) -> None:
        super().__init__(stored.shape)
        self.stored = stored
        self._bfloat16 = bfloat16

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        picked = self.stored[start:stop]
        if self._bfloat16:
            widened = picked.astype(np.uint32)
            widened <<= 16
            return widened.view(np.float32)
        return picked.astype(np.float32, copy=False)


@dataclass(frozen=True)
class _Entry:
    """A tensor of the header; begin and end count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def open_safetensors(path: Path) -> dict[str, StoredWeight]:
    """The tensors of a file by name; nothing but the header is read.

    Raises SourceError for a truncated or damaged file.
    """
    data_start, header = _read_header(path)
    entries = {name: _entry(path, name, raw) for name, raw in header.items()}
    wanted = data_start + max((entry.end for entry in entries.values()), default=0)
    size = path.stat().st_size
    if size != wanted:
        state = "truncated" if size < wanted else "damaged"
        raise SourceError(
            f"{path}: {state}: its header describes {wanted} bytes, the file has {size}; "
            f"fetch the file again"
        )
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    return {
        name: StoredWeight(_view(mapped[data_start:], entry), entry.dtype == "BF16")
        for name, entry in entries.items()
    }


def _view(data: NDArray[np.uint8], entry: _Entry) -> NDArray[Any]:
    return data[entry.begin : entry.end].view(_DTYPES[entry.dtype]).reshape(entry.shape)


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where data starts, and the header's entries."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise SourceError(
                f"{path}: truncated, or no safetensors file: {size} bytes do not hold its header"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
    except (ValueError, AttributeError) as error:
        raise SourceError(f"{path}: damaged header, or no safetensors file ({error})") from error
    return 8 + length, header


def _entry(path: Path, name: str, raw: Any) -> _Entry:
    try:
        begin, end = (int(offset) for offset in raw["data_offsets"])
        entry = _Entry(raw["dtype"], tuple(int(size) for size in raw["shape"]), begin, end)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path}: damaged header at {name} ({error!r})") from error
    if entry.dtype not in _DTYPES:
        raise UnsupportedModelError(
            f"{path}: {name} is stored as {entry.dtype}; plain weights are read as "
            f"{', '.join(_DTYPES)}, 4-bit ones as GPTQ or AWQ"
        )
    wanted = math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize
    if begin < 0 or end - begin != wanted:
        raise SourceError(f"{path}: damaged header: {name} spans {end - begin} bytes, not {wanted}")
    return entry
