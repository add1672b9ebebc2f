"""In which blocks each matrix stands in the engine: those of the source, or rounded ones.

| precision, matrix                          | carried over in | else rounded to |
|--------------------------------------------|-----------------|-----------------|
| int8                                       | 8 bits          | 8 bits          |
| int4, embedding or head                    | 4, else 8 bits  | 8 bits          |
| int4, layer; the source has 4-bit matrices | 4, else 8 bits  | 8 bits          |
| int4, layer; else                          | 4 bits          | 4 bits          |

The third row: such a source chose to keep the matrix in more bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from enginewright.builder import quantization
from enginewright.builder.block_tensor import BlockForm, Latest, LazyBlocks
from enginewright.builder.weights import Blocks, StackedWeight, Weight

Bits = tuple[int, ...]
"""The bits to carry blocks in, first one first; the last ones are those to round to."""


@runtime_checkable
class Reordered(Protocol):
    """A weight that is stored in blocks only after its inputs are put in another order."""

    def ordered_blocks(self) -> tuple[Blocks, NDArray[np.intp]] | None:
        """Blocks of ``weight[:, order]``, and that order."""


@dataclass(frozen=True)
class Matrix:
    """A matrix in blocks; ``order``: the order of inputs that its columns have, None: as it is."""

    lazy: LazyBlocks
    order: NDArray[np.intp] | None = None


class Storage:
    """Decides for each weight; the same weight asked for twice is stored once.

    ``note`` hears of each matrix that is stored.
    """

    def __init__(
        self, precision: str, layers: Sequence[Weight], note: quantization.Note | None = None
    ) -> None:
        self._precision = precision
        self._note = note
        self._layers = layers
        self._latest: Latest[Blocks] = Latest()
        self._known: dict[tuple[int, Bits], tuple[Matrix, ...]] = {}

    def of_layer(self, weight: Weight, name: str) -> tuple[Matrix, ...]:
        """The weight of a Linear: one matrix, or several one below the other; none: no blocks."""
        if self._precision == "int8":
            return self._of(weight, name, (8,))
        return self._of(weight, name, (4, 8) if self._source_has_int4 else (4,))

    def of_vocabulary(self, weight: Weight, name: str) -> tuple[Matrix, ...]:
        """The same for the embedding or the head."""
        return self._of(weight, name, (8,) if self._precision == "int8" else (4, 8))

    @cached_property
    def _source_has_int4(self) -> bool:
        parts = (part for weight in self._layers for part in _parts(weight))
        return any(carried(part, (4,)) is not None for part in parts)

    def _of(self, weight: Weight, name: str, bits: Bits) -> tuple[Matrix, ...]:
        key = (id(weight), bits)
        if key not in self._known:
            self._known[key] = self._decide(weight, name, bits)
        return self._known[key]

    def _decide(self, weight: Weight, name: str, bits: Bits) -> tuple[Matrix, ...]:
        stored = carried(weight, bits)
        if stored is not None:
            form = BlockForm.of(stored[0])
            if self._note is not None:
                self._note(name, form.bits, None)
            return (Matrix(self._lazy(form, lambda: _again(weight, bits)), stored[1]),)
        parts = _parts(weight)
        if len(parts) > 1 and any(carried(part, bits) is not None for part in parts):
            each = [self._of(part, name, bits) for part in parts]
            return tuple(matrix for some in each for matrix in some) if all(each) else ()
        size = quantization.block_size_for(weight.shape[1])
        if size is None:
            return ()
        matrix = (weight.shape[0], weight.shape[1])
        form = BlockForm.rounded(matrix, bits[-1], size)
        rounded = partial(quantization.quantize, weight, bits[-1], size, name, note=self._note)
        lazy = self._lazy(form, rounded)
        return (Matrix(lazy),)

    def _lazy(self, form: BlockForm, compute: Callable[[], Blocks]) -> LazyBlocks:
        return LazyBlocks(form, compute, self._latest)


def _parts(weight: Weight) -> tuple[Weight, ...]:
    return weight.parts if isinstance(weight, StackedWeight) else (weight,)


def carried(weight: Weight, bits: Bits) -> tuple[Blocks, NDArray[np.intp] | None] | None:
    """The blocks that the source stores, and the order of inputs that they have."""
    blocks = quantization.carry(weight, *bits)
    if blocks is not None:
        return blocks, None
    ordered = weight.ordered_blocks() if isinstance(weight, Reordered) else None
    if ordered is None:
        return None
    fitted = quantization.fit(ordered[0], *bits)
    return None if fitted is None else (fitted, ordered[1])


def _again(weight: Weight, bits: Bits) -> Blocks:
    stored = carried(weight, bits)
    assert stored is not None, "a source gives the same blocks each time"
    return stored[0]
