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
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from enginewright.builder import quantization
from enginewright.builder.block_tensor import BlockForm, Latest, LazyBlocks
from enginewright.builder.weights import Blocks, StackedWeight, Weight


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
    """Decides for each weight; the same weight asked for twice is stored once."""

    def __init__(self, precision: str, layers: Sequence[Weight]) -> None:
        self._precision = precision
        self._layers = layers
        self._latest = Latest()
        self._known: dict[tuple[int, tuple[int, ...]], tuple[Matrix, ...] | None] = {}

    def of_layer(self, weight: Weight, name: str) -> tuple[Matrix, ...] | None:
        """The weight of a Linear as one matrix or several, one below the other; None: no blocks."""
        if self._precision == "int8":
            return self._of(weight, name, (8,))
        carried = self._stored_in(weight, (4,))
        return self._of(weight, name, (4, 8) if not carried and self._source_has_int4 else (4,))

    def of_vocabulary(self, weight: Weight, name: str) -> tuple[Matrix, ...] | None:
        """The same for the embedding or the head."""
        return self._of(weight, name, (8,) if self._precision == "int8" else (4, 8))

    @cached_property
    def _source_has_int4(self) -> bool:
        return any(self._stored_in(weight, (4,)) for weight in self._layers)

    def _stored_in(self, weight: Weight, bits: tuple[int, ...]) -> bool:
        return any(_carried(part, bits) is not None for part in _parts(weight))

    def _of(self, weight: Weight, name: str, bits: tuple[int, ...]) -> tuple[Matrix, ...] | None:
        key = (id(weight), bits)
        if key not in self._known:
            self._known[key] = self._decide(weight, name, bits)
        return self._known[key]

    def _decide(
        self, weight: Weight, name: str, bits: tuple[int, ...]
    ) -> tuple[Matrix, ...] | None:
        whole = self._matrix(weight, name, bits)
        if whole is not None and (whole.carried or not self._stored_in(weight, bits)):
            return None
        return None


def _parts(weight: Weight) -> tuple[Weight, ...]:
    return weight.parts if isinstance(weight, StackedWeight) else (weight,)
