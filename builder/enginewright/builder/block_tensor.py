"""Block-quantized matrices as initializers, computed only when the target writes them.

| part        | shape                            | dtype   | layout                                |
|-------------|----------------------------------|---------|---------------------------------------|
| codes       | [N, K / block, block * bits / 8] | uint8   | 4 bits: low half of a byte first      |
| table       | [N, K * bits / 8]                | uint8   | the same bytes, for an embedding      |
| scales      | [N, K / block]                   | float32 |                                       |
| zero_points | [N, ceil(K / block * bits / 8)]  | uint8   | packed along a row like codes         |
| offsets     | [N, K / block]                   | float32 |                                       |

These are the layouts of ``MatMulNBits`` and ``GatherBlockQuantized``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.builder.weights import Blocks


@dataclass(frozen=True)
class BlockForm:
    """What is known of a matrix in blocks before it is computed."""

    matrix: tuple[int, int]
    bits: int
    block_size: int
    zero_points: bool
    offsets: bool

    @staticmethod
    def of(blocks: Blocks) -> BlockForm:
        return BlockForm(
            blocks.codes.shape,
            blocks.bits,
            blocks.block_size,
            blocks.zero_points is not None,
            blocks.offsets is not None,
        )

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
            "zero_points": (self.rows, -(-self.blocks * self.bits // 8)),
        }.get(part, (self.rows, self.blocks))


class Latest:
    """Holds the blocks computed last: the parts of one matrix are written one after another."""

    def __init__(self) -> None:
        self._owner: LazyBlocks | None = None
        self._blocks: Blocks | None = None

    def get(self, owner: LazyBlocks) -> Blocks:
        if self._owner is not owner or self._blocks is None:
            self._blocks = None
            self._blocks = owner.compute()
            self._owner = owner
        return self._blocks


class LazyBlocks:
    """Blocks of a known form that are computed when one of their parts is read."""

    def __init__(self, form: BlockForm, compute: Callable[[], Blocks], latest: Latest) -> None:
        self.form = form
        self.compute = compute
        self._latest = latest

    def part(self, part: str) -> NDArray[Any]:
        """One part, packed; see the module's table."""
        blocks = self._latest.get(self)
        assert BlockForm.of(blocks) == self.form, "blocks differ from what the graph was told"
        if part in ("codes", "table"):
            packed: NDArray[Any] = _pack(blocks.codes, self.form.bits)
        elif part == "zero_points":
            assert blocks.zero_points is not None
            packed = _pack(blocks.zero_points, self.form.bits)
        else:
            packed = getattr(blocks, part)
        return np.ascontiguousarray(packed).reshape(self.form.shape(part))


class BlockTensor(ir.TensorProtocol):
    """An ONNX-IR tensor over one part of lazy blocks."""

    def __init__(self, lazy: LazyBlocks, part: str, name: str) -> None:
        self._lazy = lazy
        self._part = part
        self.name: str | None = name
        self.shape = ir.Shape(lazy.form.shape(part))
        floating = part in ("scales", "offsets")
        self.dtype = ir.DataType.FLOAT if floating else ir.DataType.UINT8
        self.doc_string: str | None = None
        self.raw: Any = lazy
        self.metadata_props: dict[str, str] = {}
        self.meta: dict[str, Any] = {}

    @property
    def content(self) -> Hashable:
        """Equal for tensors of the same bytes: codes and table of one matrix are."""
        return id(self._lazy), "codes" if self._part == "table" else self._part

    @property
    def size(self) -> int:
        return int(np.prod(self._lazy.form.shape(self._part)))

    @property
    def nbytes(self) -> int:
        return self.size * (4 if self.dtype is ir.DataType.FLOAT else 1)

    def numpy(self) -> Any:
        return self._lazy.part(self._part)

    def tobytes(self) -> bytes:
        return self._lazy.part(self._part).tobytes()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self.numpy(), dtype=dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.numpy().__dlpack_device__()


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes [N, K] -> bytes [N, ceil(K * bits / 8)], lowest bits first."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    packed: NDArray[np.uint8] = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return packed
