"""Weights that are read when they are needed: the currency between source, passes and target.

| array       | shape               | dtype   | meaning                                        |
|-------------|---------------------|---------|------------------------------------------------|
| codes       | [N, K]              | uint8   | unsigned codes, one a byte, below 2**bits      |
| scales      | [N, K / block_size] | float32 | scale of each block                            |
| zero_points | [N, K / block_size] | uint8   | integer zero of each block; None: 2**(bits-1)  |
| offsets     | [N, K / block_size] | float32 | what is added to each block; None: 0           |

value = scale * (code - zero_point) + offset, blocks running along K.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Blocks:
    """A matrix [N, K] in block-quantized form; see the module's table."""

    bits: int
    block_size: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None = None
    offsets: NDArray[np.float32] | None = None

    def dequantize(self) -> NDArray[np.float32]:
        """The values [N, K], exact to float32 rounding."""
        n, k = self.codes.shape
        codes = self.codes.reshape(n, -1, self.block_size).astype(np.float32)
        zero = np.float32(1 << (self.bits - 1))
        zeros = zero if self.zero_points is None else self.zero_points[..., None].astype(np.float32)
        values = self.scales[..., None] * (codes - zeros)
        if self.offsets is not None:
            values = values + self.offsets[..., None]
        return values.reshape(n, k)


class Weight(ABC):
    """One tensor of the model, of any rank, that can be read in float32 by rows of axis 0."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    @abstractmethod
    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of axis 0, as float32 [stop - start, ...]."""

    def numpy(self) -> NDArray[np.float32]:
        """The whole tensor as float32."""
        return self.rows(0, self.shape[0])

    def blocks(self) -> Blocks | None:
        """The stored block-quantized form, exactly; None if it is not stored so."""
        return None


class ArrayWeight(Weight):
    """A weight that is already in memory, or in a memory-mapped array of float32."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        super().__init__(array.shape)
        self._array = array

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return np.asarray(self._array[start:stop], dtype=np.float32)


class StackedWeight(Weight):
    """Weights of equal trailing shape, one after another along axis 0."""

    def __init__(self, parts: Sequence[Weight]) -> None:
        super().__init__((sum(part.shape[0] for part in parts), *parts[0].shape[1:]))
        self.parts = tuple(parts)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        pieces, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.shape[0])
            if low < high:
                pieces.append(part.rows(low, high))
            first += part.shape[0]
        return np.concatenate(pieces)

    def blocks(self) -> Blocks | None:
        parts = [part.blocks() for part in self.parts]
        found = [part for part in parts if part is not None]
        if len(found) != len(parts) or len({(b.bits, b.block_size) for b in found}) != 1:
            return None
        return _stack(found)


class TransposedWeight(Weight):
    """A matrix [K, N] seen as [N, K]."""

    def __init__(self, weight: Weight) -> None:
        super().__init__((weight.shape[1], weight.shape[0]))
        self._weight = weight

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(self._weight.numpy()[:, start:stop].T)


class RowPermutedWeight(Weight):
    """The rows of a weight in another order: row i is row ``order[i]`` of the stored one."""

    def __init__(self, weight: Weight, order: NDArray[np.intp]) -> None:
        super().__init__(weight.shape)
        self._weight = weight
        self._order = order

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._weight.numpy()[self._order[start:stop]]

    def blocks(self) -> Blocks | None:
        stored = self._weight.blocks()
        if stored is None:
            return None
        pick = self._order
        return Blocks(
            stored.bits,
            stored.block_size,
            stored.codes[pick],
            stored.scales[pick],
            None if stored.zero_points is None else stored.zero_points[pick],
            None if stored.offsets is None else stored.offsets[pick],
        )


def _stack(parts: Sequence[Blocks]) -> Blocks:
    bits, block_size = parts[0].bits, parts[0].block_size
    zero_points = offsets = None
    if any(part.zero_points is not None for part in parts):
        zero_points = np.concatenate(
            [
                np.full(part.scales.shape, 1 << (bits - 1), np.uint8)
                if part.zero_points is None
                else part.zero_points
                for part in parts
            ]
        )
    if any(part.offsets is not None for part in parts):
        offsets = np.concatenate(
            [
                np.zeros(part.scales.shape, np.float32) if part.offsets is None else part.offsets
                for part in parts
            ]
        )
    codes = np.concatenate([part.codes for part in parts])
    scales = np.concatenate([part.scales for part in parts])
    return Blocks(bits, block_size, codes, scales, zero_points, offsets)
