"""Weights stored as packed 4-bit integers with a scale and a zero for each group of inputs.

| array   | shape  | dtype   | meaning                                                       |
|---------|--------|---------|---------------------------------------------------------------|
| words   | [*, *] | int32   | eight codes a word, as a subclass knows                       |
| scales  | [G, N] | float   | scale of each group of inputs, for each output                |
| zeros   | [G, N] | uint8   | integer zero of each group                                    |
| groups  | [K]    | int     | the group of each input; arange(K) // group_size if in order  |
| codes   | [n, K] | uint8   | what a subclass unpacks, for n rows of the weight             |

value[n, k] = scales[groups[k], n] * (codes[n, k] - zeros[groups[k], n])
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.builder.source.safetensors_file import StoredWeight
from enginewright.builder.weights import Blocks, StoredForm, Weight
from enginewright.runtime.errors import SourceError, UnsupportedModelError

BITS = 4
PER_WORD = 8
_CHUNK = 512


class Int4Weight(Weight):
    """A matrix [N, K]; exact in float32, and exact as blocks where its groups are in order."""

    def __init__(
        self,
        words: NDArray[np.int32],
        scales: NDArray[Any],
        zeros: NDArray[np.uint8],
        groups: NDArray[np.integer[Any]],
    ) -> None:
        super().__init__((scales.shape[1], groups.shape[0]))
        self._words = words
        self._scales = scales
        self._zeros = zeros
        self._groups = groups

    @abstractmethod
    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The codes [stop - start, K] of rows [start, stop)."""

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        stop = min(stop, self.shape[0])
        values = np.empty((max(stop - start, 0), self.shape[1]), np.float32)
        for low in range(start, stop, _CHUNK):
            high = min(low + _CHUNK, stop)
            part = values[low - start : high - start]
            part[...] = self.codes(low, high)
            part -= self._zeros[:, low:high].T[:, self._groups]
            part *= self._scales[:, low:high].T.astype(np.float32)[:, self._groups]
        return values

    def blocks(self) -> Blocks | None:
        """The stored form; None where inputs were reordered by activation (GPTQ's desc_act) or
        the last group is short: ``ordered_blocks`` has the former.
        """
        ordered = self.ordered_blocks()
        if ordered is None or (np.diff(ordered[1]) != 1).any():
            return None
        return ordered[0]

    def stored_form(self) -> StoredForm | None:
        count, inputs = self._scales.shape[0], self.shape[1]
        return StoredForm(BITS, inputs // count, zero_points=True) if inputs % count == 0 else None

    def ordered_blocks(self) -> tuple[Blocks, NDArray[np.intp]] | None:
        """The stored form of ``weight[:, order]``, and that order of the inputs; None where
        groups are not of one size.
        """
        order = np.argsort(self._groups, kind="stable")
        count, inputs = self._scales.shape[0], self.shape[1]
        size = inputs // count
        if inputs % count or (self._groups[order] != np.arange(inputs) // size).any():
            return None
        scales = np.ascontiguousarray(self._scales.T.astype(np.float32))
        zeros = np.ascontiguousarray(self._zeros.T)
        blocks = Blocks(BITS, size, lambda: self.codes(0, self.shape[0])[:, order], scales, zeros)
        return blocks, order


def unpack_words(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Eight codes of each 32-bit word, lowest bits first, along a new last axis."""
    unpacked = np.empty((*words.shape, PER_WORD), np.uint8)
    for position in range(PER_WORD):
        unpacked[..., position] = (words >> (position * BITS)) & 15
    return unpacked


def groups_of(inputs: int, size: int) -> tuple[int, NDArray[np.integer[Any]]]:
    """How many groups there are if they are in order, and the group of each input."""
    size = inputs if size == -1 else size
    return -(-inputs // size), np.arange(inputs) // size


def settings_of(settings: Mapping[str, Any], where: str) -> int:
    """The group size, -1 for one group over all inputs; refuses all but 4 bits."""
    method = settings.get("quant_method")
    bits = settings.get("bits", settings.get("w_bit"))
    if bits != BITS:
        raise UnsupportedModelError(f"{where}: {method} of {bits} bits; only 4 bits are built")
    size = settings.get("group_size", settings.get("q_group_size"))
    if not isinstance(size, int) or (size < 1 and size != -1):
        raise SourceError(
            f"{where}: quantization_config.group_size {size!r}; a positive number or -1 is wanted"
        )
    return size


@dataclass(frozen=True)
class PackedModule:
    """The stored arrays of one module whose weight [N, K] is packed; ``where``: for errors."""

    stored: Mapping[str, StoredWeight]
    name: str
    where: str

    def __post_init__(self) -> None:
        words = self.words
        if words.ndim != 2 or words.dtype != np.int32 or not words.size:
            raise SourceError(
                f"{self.where}: {self.name}.qweight is {words.dtype}{list(words.shape)}, a matrix "
                f"of int32 is wanted"
            )

    @property
    def words(self) -> NDArray[np.int32]:
        return self.stored[f"{self.name}.qweight"].stored

    def __contains__(self, part: str) -> bool:
        return f"{self.name}.{part}" in self.stored

    def part(self, part: str, *shape: int) -> NDArray[Any]:
        """One stored array, of the shape that qweight and settings ask for."""
        name = f"{self.name}.{part}"
        if part not in self:
            raise SourceError(f"{self.where}: {name} is missing beside {self.name}.qweight")
        found = self.stored[name].stored
        kinds = "fu" if part == "scales" else "i"  # bfloat16 is mapped as uint16
        if found.shape != shape or found.dtype.kind not in kinds:
            raise SourceError(
                f"{self.where}: {name} is {found.dtype}{list(found.shape)}, but {list(shape)} of "
                f"{'floats' if part == 'scales' else 'int32'} is wanted by quantization_config "
                f"and {self.name}.qweight"
            )
        return found

    def scales(self, *shape: int) -> NDArray[np.float32]:
        """The scales [G, N]; small, so they are converted at once."""
        self.part("scales", *shape)
        return self.stored[f"{self.name}.scales"].numpy()


def unpack_modules(
    stored: Mapping[str, StoredWeight], where: str, weight: Callable[[PackedModule], Weight]
) -> dict[str, Weight]:
    """Stored tensors -> weights, those of each packed module made one by ``weight``."""
    weights: dict[str, Weight] = dict(stored)
    for qweight in (name for name in stored if name.endswith(".qweight")):
        module = PackedModule(stored, qweight.removesuffix(".qweight"), where)
        weights[f"{module.name}.weight"] = weight(module)
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            weights.pop(f"{module.name}.{part}", None)
    return weights
