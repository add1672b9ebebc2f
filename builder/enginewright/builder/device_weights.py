"""Matrices in the number formats of GPUs, as initializers that are computed when they are written.

| format | codes              | scales, of              | more                               |
|--------|--------------------|-------------------------|------------------------------------|
| int8   | int8 [N, K]        | float16 [N], rows       |                                    |
| fp8    | float8 e4m3 [N, K] | float16 [N], rows       |                                    |
| int4   | int4 [N, K]        | float16 [N, K / block]  | corrections float16 [N, K / block] |
| nvfp4  | float4 e2m1 [N, K] | float8 e4m3 [N, K / 16] | scale float16 [], of the scales    |

value = code * scale (* scale of scales) (+ correction), blocks running along K. Only int4 that was
stored with zeros or offsets has corrections: there value = d (q - zero) + m = d (q - 8) +
(m + d (8 - zero)).

Parts may be written turned: int4 [K, N], scales [K / block, N], and so on. TensorRT takes them as
they stand; of a matrix behind a Transpose it makes another copy for each optimization profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.builder.block_tensor import Latest
from enginewright.builder.quantization import checked_rows, quantize
from enginewright.builder.weights import Blocks, Weight

FP4_BLOCK = 16
_FP8_LARGEST = 448.0
_FP4_LARGEST = 6.0
_NVFP4_STEPS = _FP8_LARGEST * _FP4_LARGEST
_SMALLEST = np.float32(2.0**-24)  # of float16: a scale of 0 would be divided by
_CODES = {
    "int8": ir.DataType.INT8,
    "fp8": ir.DataType.FLOAT8E4M3FN,
    "int4": ir.DataType.INT4,
    "nvfp4": ir.DataType.FLOAT4E2M1,
}
Parts = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Form:
    """What is known of a matrix before it is computed. ``block_size`` 0: one scale a row.

    ``turned``: its parts are written transposed.
    """

    kind: str
    matrix: tuple[int, int]
    block_size: int = 0
    corrections: bool = False
    turned: bool = False

    def __post_init__(self) -> None:
        assert self.kind in _CODES
        assert self.block_size == 0 or self.matrix[1] % self.block_size == 0

    def tensor(self, part: str) -> tuple[ir.DataType, tuple[int, ...]]:
        """Type and shape of a part; see the module's table."""
        rows, inputs = self.matrix
        if part == "scale":
            return ir.DataType.FLOAT16, ()
        if part == "codes":
            return _CODES[self.kind], self._written(self.matrix)
        by_block = (rows, inputs // self.block_size) if self.block_size else (rows,)
        fp8 = self.kind == "nvfp4" and part == "scales"
        return ir.DataType.FLOAT8E4M3FN if fp8 else ir.DataType.FLOAT16, self._written(by_block)

    def _written(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[::-1] if self.turned else shape


class DeviceMatrix:
    """A matrix of a known form that is computed when one of its parts is read."""

    def __init__(self, form: Form, compute: Callable[[], Parts], latest: Latest[Parts]) -> None:
        self.form = form
        self.compute = compute
        self._latest = latest

    def part(self, part: str) -> ir.TensorProtocol:
        """One part; codes of 4 bits are packed, the low half of a byte first."""
        dtype, shape = self.form.tensor(part)
        array = self._latest.get(self)[part]
        array = array.T if self.form.turned else array
        if dtype.bitwidth < 8:
            pairs = array.reshape(-1, 2)
            packed = pairs[:, 0] | (pairs[:, 1] << np.uint8(4))
            return ir.PackedTensor(packed, dtype, shape=ir.Shape(shape))
        array = np.ascontiguousarray(array)
        return ir.Tensor(array.view(dtype.numpy()).reshape(shape), dtype)


class DeviceTensor(ir.LazyTensor):
    """An ONNX-IR tensor over one part of a matrix."""

    def __init__(self, matrix: DeviceMatrix, part: str, name: str) -> None:
        dtype, shape = matrix.form.tensor(part)
        super().__init__(lambda: matrix.part(part), dtype, ir.Shape(shape), name=name)
        self.matrix = matrix


def int4_parts(blocks: Blocks) -> Parts:
    """What blocks of 4 bits are, with the middle code as zero."""
    parts: dict[str, NDArray[Any]] = {
        "codes": blocks.codes() ^ np.uint8(8),  # two's complement of code - 8
        "scales": blocks.scales.astype(np.float16),
    }
    if has_corrections(blocks):
        zeros = blocks.zero if blocks.zero_points is None else blocks.zero_points
        added = blocks.scales * (np.float32(8) - np.asarray(zeros, np.float32))
        if blocks.offsets is not None:
            added = added + blocks.offsets
        parts["corrections"] = added.astype(np.float16)
    return parts


def has_corrections(blocks: Blocks) -> bool:
    """Whether a block of 4 bits has another zero than the middle code, or an offset."""
    zeros = blocks.zero if blocks.zero_points is None else blocks.zero_points
    return blocks.offsets is not None or bool(np.any(np.asarray(zeros) != 8))


def rounded_parts(weight: Weight, form: Form, name: str) -> Parts:
    """A weight rounded to a form, read a few rows at a time."""
    if form.kind == "int4":
        return int4_parts(quantize(weight, 4, form.block_size, name, symmetric=True))
    if form.kind == "nvfp4":
        magnitudes = [float(np.abs(values).max()) for values in checked_rows(weight, name)]
        scale = np.float16(max(max(magnitudes) / _NVFP4_STEPS, float(_SMALLEST)))
        chunks = [_nvfp4(values, np.float32(scale)) for values in checked_rows(weight, name)]
        return {**_joined(chunks), "scale": np.array(scale)}
    rounding = _int8 if form.kind == "int8" else _fp8
    return _joined([rounding(values) for values in checked_rows(weight, name)])


def _joined(chunks: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _int8(values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    scales = _row_scales(values, 127)
    steps = np.rint(values / scales[:, None].astype(np.float32))
    return {"codes": np.clip(steps, -127, 127).astype(np.int8), "scales": scales}


def _fp8(values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    scales = _row_scales(values, _FP8_LARGEST)
    ratios: NDArray[np.float32] = np.divide(values, scales[:, None], dtype=np.float32)
    return {"codes": _to_fp8(ratios), "scales": scales}


def _row_scales(values: NDArray[np.float32], steps: float) -> NDArray[np.float16]:
    """The scale of each row, with which its largest magnitude is the last step."""
    wanted = np.abs(values).max(axis=1) / np.float32(steps)
    scales: NDArray[np.float16] = np.maximum(wanted, _SMALLEST).astype(np.float16)
    return scales


def _nvfp4(values: NDArray[np.float32], scale: np.float32) -> dict[str, NDArray[Any]]:
    blocks = values.reshape(len(values), -1, FP4_BLOCK)
    largest: NDArray[np.float32] = np.abs(blocks).max(axis=-1)
    codes = _to_fp8(largest / np.float32(_FP4_LARGEST * scale))
    by_block = codes.astype(np.float32) * scale
    used = np.where(by_block > 0, by_block, np.float32(np.inf))
    ratios = np.clip(blocks / used[..., None], -_FP4_LARGEST, _FP4_LARGEST)
    fours = ratios.astype(ml_dtypes.float4_e2m1fn).view(np.uint8).reshape(values.shape)
    return {"codes": fours, "scales": codes}


def _to_fp8(values: NDArray[np.float32]) -> NDArray[Any]:
    return np.clip(values, -_FP8_LARGEST, _FP8_LARGEST).astype(ml_dtypes.float8_e4m3fn)
