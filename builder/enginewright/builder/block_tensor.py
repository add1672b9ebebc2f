"""Block-quantized matrices as initializers, computed only when the target writes them.

| part        | shape                            | dtype   | layout                                |
|-------------|----------------------------------|---------|---------------------------------------|
| codes       | [N, K / block, block * bits / 8] | uint8   | 4 bits: low half of a byte first      |
| table       | [N, K * bits / 8]                | uint8   | the same bytes, for an embedding      |
| fine_codes  | [N, K / 16, 2 * bits]            | uint8   | the same bytes, in blocks of 16       |
| scales      | [N, K / block]                   | T       |                                       |
| zero_points | [N, ceil(K / block * bits / 8)]  | uint8   | packed along a row like codes         |
| fine_zeros  | [N, ceil(K / 16 * bits / 8)]     | uint8   | zero_points of blocks of 16           |
| offsets     | [N, K / block]                   | T       |                                       |

These are the layouts of ``BlockLinear``, ``MatMulNBits`` and ``GatherBlockQuantized``. T is float16
where that holds all scales and offsets of the matrix exactly, else float32.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.builder.quantization import MIN_BLOCK_SIZE
from enginewright.builder.weights import Blocks

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_CODES = ("codes", "table", "fine_codes")


@dataclass(frozen=True)
class BlockForm:
    """What is known of a matrix in blocks before it is computed."""

    matrix: tuple[int, int]
    bits: int
    block_size: int
    zero_points: bool
    offsets: bool
    zero: int  # where there are no zero_points
    half: bool  # scales and offsets are float16

    @staticmethod
    def of(blocks: Blocks) -> BlockForm:
        return BlockForm(
            blocks.shape,
            blocks.bits,
            blocks.block_size,
            blocks.zero_points is not None,
            blocks.offsets is not None,
            blocks.zero,
            _fits_half(blocks.scales) and _fits_half(blocks.offsets),
        )

    @staticmethod
    def rounded(matrix: tuple[int, int], bits: int, block_size: int) -> BlockForm:
        """Of what ``quantization.quantize`` makes."""
        middle = 1 << (bits - 1)
        return BlockForm(matrix, bits, block_size, bits == 4, False, middle, half=True)

    @property
    def rows(self) -> int:
        """N."""
        return self.matrix[0]

    @property
    def inputs(self) -> int:
        """K."""
        return self.matrix[1]

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return self.inputs // self.block_size

    def shape(self, part: str) -> tuple[int, ...]:
        """The shape of a part; see the module's table."""
        return {
            "codes": (self.rows, self.blocks, self.block_size * self.bits // 8),
            "table": (self.rows, self.inputs * self.bits // 8),
            "fine_codes": (
                self.rows,
                self.inputs // MIN_BLOCK_SIZE,
                MIN_BLOCK_SIZE * self.bits // 8,
            ),
            "fine_zeros": (self.rows, -(-self.inputs // MIN_BLOCK_SIZE * self.bits // 8)),
            "zero_points": (self.rows, -(-self.blocks * self.bits // 8)),
        }.get(part, (self.rows, self.blocks))


class Computes(Protocol[T_co]):
    """Something that is large, and made when it is asked for."""

    @property
    def compute(self) -> Callable[[], T_co]:
        """Makes it."""


class Latest(Generic[T]):
    """Holds what was computed last: the parts of one matrix are written one after another."""

    def __init__(self) -> None:
        self._owner: Computes[T] | None = None
        self._made: T | None = None

    def get(self, owner: Computes[T]) -> T:
        if self._owner is not owner or self._made is None:
            self._made = None
            self._made = owner.compute()
            self._owner = owner
        return self._made


class LazyBlocks:
    """Blocks of a known form that are computed when one of their parts is read."""

    def __init__(
        self, form: BlockForm, compute: Callable[[], Blocks], latest: Latest[Blocks]
    ) -> None:
        self.form = form
        self.compute = compute
        self._latest = latest

    def part(self, part: str) -> NDArray[Any]:
        """One part, packed; see the module's table."""
        blocks = self._latest.get(self)
        assert BlockForm.of(blocks) == self.form, "blocks differ from what the graph was told"
        if part in _CODES:
            packed: NDArray[Any] = _pack(blocks.codes(), self.form.bits)
        elif part in ("zero_points", "fine_zeros"):
            assert blocks.zero_points is not None
            times = self.form.block_size // MIN_BLOCK_SIZE if part == "fine_zeros" else 1
            packed = _pack(np.repeat(blocks.zero_points, times, axis=1), self.form.bits)
        else:
            packed = getattr(blocks, part).astype(np.float16 if self.form.half else np.float32)
        return np.ascontiguousarray(packed).reshape(self.form.shape(part))


class BlockTensor(ir.LazyTensor):
    """An ONNX-IR tensor over one part of lazy blocks."""

    def __init__(self, lazy: LazyBlocks, part: str, name: str) -> None:
        kind = ir.DataType.UINT8
        if part in ("scales", "offsets"):
            kind = ir.DataType.FLOAT16 if lazy.form.half else ir.DataType.FLOAT
        shape = ir.Shape(lazy.form.shape(part))
        super().__init__(lambda: ir.Tensor(lazy.part(part)), kind, shape, name=name)
        self.lazy = lazy
        self.content: Hashable = (id(lazy), "codes" if part in _CODES else part)
        """Equal for tensors of the same bytes, as those of all codes of one matrix are."""


def _fits_half(values: NDArray[np.float32] | None) -> bool:
    if values is None:
        return True
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16) == values).all())


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes [N, K] -> bytes [N, ceil(K * bits / 8)], lowest bits first."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    packed: NDArray[np.uint8] = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return packed
