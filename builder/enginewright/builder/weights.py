"""Weights that are read when they are needed: the currency between source, passes and target.

| array       | shape               | dtype   | meaning                                        |
|-------------|---------------------|---------|------------------------------------------------|
| codes()     | [N, K]              | uint8   | unsigned codes, one a byte, below 2**bits      |
| scales      | [N, K / block_size] | float32 | scale of each block                            |
| zero_points | [N, K / block_size] | uint8   | integer zero of each block; None: all `zero`   |
| offsets     | [N, K / block_size] | float32 | what is added to each block; None: 0           |

value = scale * (code - zero_point) + offset, blocks running along K.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Blocks:
    """A matrix [N, K] in block-quantized form; see the module's table.

    ``codes`` reads them at each call: they are most of the bytes, and seldom needed to decide.
    """

    bits: int
    block_size: int
    codes: Callable[[], NDArray[np.uint8]]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None = None
    offsets: NDArray[np.float32] | None = None
    uniform_zero: int | None = None

    @property
    def zero(self) -> int:
        """The zero of every block without ``zero_points``: by default the middle code."""
        return 1 << (self.bits - 1) if self.uniform_zero is None else self.uniform_zero

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        rows, blocks = self.scales.shape
        return rows, blocks * self.block_size

    def each(self, change: Callable[[NDArray[Any]], NDArray[Any]], **others: Any) -> Blocks:
        """Blocks whose scales, zero points and offsets are changed alike, and ``others``."""
        zeros, offsets = self.zero_points, self.offsets
        return replace(
            self,
            scales=change(self.scales),
            zero_points=None if zeros is None else change(zeros),
            offsets=None if offsets is None else change(offsets),
            **others,
        )

    def dequantize(self) -> NDArray[np.float32]:
        """The values [N, K], exact to float32 rounding."""
        codes = self.codes().reshape(*self.scales.shape, self.block_size).astype(np.float32)
        zero = np.float32(self.zero)
        zeros = zero if self.zero_points is None else self.zero_points[..., None].astype(np.float32)
        values = self.scales[..., None] * (codes - zeros)
        if self.offsets is not None:
            values = values + self.offsets[..., None]
        return values.reshape(self.shape)


@dataclass(frozen=True)
class StoredForm:
    """How a weight is stored in blocks, as headers tell; ``wide``: its scales need float32."""

    bits: int
    block_size: int
    zero_points: bool = False
    offsets: bool = False
    wide: bool = False


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

    def stored_form(self) -> StoredForm | None:
        """What ``blocks`` would tell, without reading anything; None if it has none."""
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
        return stack(found)


class TransposedWeight(Weight):
    """A matrix [K, N] seen as [N, K]; made by ``transposed``."""

    def __init__(self, weight: Weight) -> None:
        super().__init__((weight.shape[1], weight.shape[0]))
        self.original = weight

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.original.numpy()[:, start:stop].T)


def transposed(weight: Weight) -> Weight:
    """The transpose; of a transpose the original, with the blocks that it may be stored in."""
    return weight.original if isinstance(weight, TransposedWeight) else TransposedWeight(weight)


class RowPermutedWeight(Weight):
    """The rows of a weight in another order: row i is row ``order[i]`` of the stored one."""

    def __init__(self, weight: Weight, order: NDArray[np.intp]) -> None:
        super().__init__(weight.shape)
        self._weight = weight
        self._order = order

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        wanted = self._order[start:stop]
        first = int(wanted.min())
        return self._weight.rows(first, int(wanted.max()) + 1)[wanted - first]

    def blocks(self) -> Blocks | None:
        stored = self._weight.blocks()
        if stored is None:
            return None
        pick = self._order
        return stored.each(lambda part: part[pick], codes=lambda: stored.codes()[pick])

    def stored_form(self) -> StoredForm | None:
        return self._weight.stored_form()


def stack(parts: Sequence[Blocks]) -> Blocks:
    """Blocks of the same bits and size, one below the other."""
    zero_points: NDArray[np.uint8] | None = None
    if len({part.zero for part in parts if part.zero_points is None}) > 1 or any(
        part.zero_points is not None for part in parts
    ):
        zero_points = _stacked(parts, "zero_points", lambda part: np.uint8(part.zero))
    offsets: NDArray[np.float32] | None = None
    if any(part.offsets is not None for part in parts):
        offsets = _stacked(parts, "offsets", lambda _: np.float32(0))
    return replace(
        parts[0],
        codes=lambda: np.concatenate([part.codes() for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zero_points=zero_points,
        offsets=offsets,
    )


def _stacked(
    parts: Sequence[Blocks], name: str, missing: Callable[[Blocks], np.generic]
) -> NDArray[Any]:
    """The parts' arrays of that name; where a part has none, the value that this means."""
    found = [(part, getattr(part, name)) for part in parts]
    return np.concatenate(
        [np.full(p.scales.shape, missing(p)) if array is None else array for p, array in found]
    )
