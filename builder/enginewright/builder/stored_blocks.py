"""In which blocks each matrix stands in the engine: those of the source, or rounded ones.

| precision, matrix                          | carried over in | else rounded to |
|--------------------------------------------|-----------------|-----------------|
| int8                                       | 8 bits          | 8 bits          |
| int4, embedding or head                    | 4, else 8 bits  | 8 bits          |
| int4, layer; the source has 4-bit matrices | 4, else 8 bits  | 8 bits          |
| int4, layer; else                          | 4 bits          | 4 bits          |

The third row: such a source chose to keep the matrix in more bits.

Engines round the activations in blocks of the weights' size, so blocks of 16 are more exact than
blocks of 32. Under int8 all stand in blocks of 16: the 8-bit product costs the same, its bytes a
tenth more (on SmolLM2 the mean KL falls from 0.0058 to 0.0032). Under int4, whose product is slower
over 16, only what projects queries, keys and values does, where the rounding hurts most (0.0045 to
0.0038).
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


@dataclass(frozen=True)
class _Choice:
    """The bits to carry in, first one first, the last one to round to; the largest block."""

    bits: tuple[int, ...]
    largest: int = quantization.MAX_BLOCK_SIZE


_INT8 = _Choice((8,), quantization.MIN_BLOCK_SIZE)


class Storage:
    """Decides for each weight; the same weight asked for twice is stored once."""

    def __init__(self, precision: str, layers: Sequence[Weight]) -> None:
        self._precision = precision
        self._layers = layers
        self._latest = Latest()
        self._known: dict[tuple[int, _Choice], tuple[Matrix, ...]] = {}

    def of_layer(self, weight: Weight, name: str, *, attention: bool) -> tuple[Matrix, ...]:
        """The weight of a Linear: one matrix, or several one below the other; none: no blocks.

        ``attention``: its output is queries, keys or values.
        """
        if self._precision == "int8":
            return self._of(weight, name, _INT8)
        bits = (4, 8) if self._source_has_int4 else (4,)
        largest = quantization.MIN_BLOCK_SIZE if attention else quantization.MAX_BLOCK_SIZE
        return self._of(weight, name, _Choice(bits, largest))

    def of_vocabulary(self, weight: Weight, name: str) -> tuple[Matrix, ...]:
        """The same for the embedding or the head."""
        return self._of(weight, name, _INT8 if self._precision == "int8" else _Choice((4, 8)))

    @cached_property
    def _source_has_int4(self) -> bool:
        parts = (part for weight in self._layers for part in _parts(weight))
        return any(_carried(part, _Choice((4,))) is not None for part in parts)

    def _of(self, weight: Weight, name: str, choice: _Choice) -> tuple[Matrix, ...]:
        key = (id(weight), choice)
        if key not in self._known:
            self._known[key] = self._decide(weight, name, choice)
        return self._known[key]

    def _decide(self, weight: Weight, name: str, choice: _Choice) -> tuple[Matrix, ...]:
        carried = _carried(weight, choice)
        if carried is not None:
            form = BlockForm.of(carried[0])
            return (Matrix(self._lazy(form, lambda: _again(weight, choice)), carried[1]),)
        parts = _parts(weight)
        if len(parts) > 1 and any(_carried(part, choice) is not None for part in parts):
            each = [self._of(part, name, choice) for part in parts]
            return tuple(matrix for some in each for matrix in some) if all(each) else ()
        size = quantization.block_size_for(weight.shape[1], choice.largest)
        if size is None:
            return ()
        matrix, bits = (weight.shape[0], weight.shape[1]), choice.bits[-1]
        form = BlockForm(matrix, bits, size, zero_points=True, offsets=False)
        lazy = self._lazy(form, lambda: quantization.quantize(weight, bits, size, name))
        return (Matrix(lazy),)

    def _lazy(self, form: BlockForm, compute: Callable[[], Blocks]) -> LazyBlocks:
        return LazyBlocks(form, compute, self._latest)


def _parts(weight: Weight) -> tuple[Weight, ...]:
    return weight.parts if isinstance(weight, StackedWeight) else (weight,)


def _carried(weight: Weight, choice: _Choice) -> tuple[Blocks, NDArray[np.intp] | None] | None:
    """The blocks that the source stores, and the order of inputs that they have."""
    blocks = quantization.carry(weight, *choice.bits, largest=choice.largest)
    if blocks is not None:
        return blocks, None
    ordered = weight.ordered_blocks() if isinstance(weight, Reordered) else None
    if ordered is None:
        return None
    fitted = quantization.fit(ordered[0], *choice.bits, largest=choice.largest)
    return None if fitted is None else (fitted, ordered[1])


def _again(weight: Weight, choice: _Choice) -> Blocks:
    carried = _carried(weight, choice)
    assert carried is not None, "a source gives the same blocks each time"
    return carried[0]
