"""BlockLinear in plain numpy: the meaning that every kernel is held to. Tensors: contract.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.block_linear.contract import (
    GROUP,
    LARGEST_BYTE,
    LARGEST_WORD,
    SMALLEST_SCALE,
)
from enginewright.plugins.rounding import cut, ties_to_even
from enginewright.plugins.row_ops.reference import swiglu

LARGER = np.float32(1 + 3 / 1024)
"""So much larger tiles of bfloat16 make W before they cut it."""


def block_linear(
    x: NDArray[np.float32],
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8] | None = None,
    offsets: NDArray[Any] | None = None,
    bias: NDArray[np.float32] | None = None,
    *,
    bits: int,
    zero: int,
    tiles: bool = False,
    gated: bool = False,
) -> NDArray[np.float64]:
    """y [..., N], or [..., N / 2] if ``gated``, in float64.

    ``tiles``: of what tiles of bfloat16 multiply.
    """
    dequantized = _cut if tiles else dequantize
    weight = dequantized(codes, scales, zero_points, offsets, bits=bits, zero=zero)
    rounded = ties_to_even(x) if tiles else round_activations(x, bits)
    y: NDArray[np.float64] = rounded @ weight.T
    y = y if bias is None else y + bias
    return swiglu(y) if gated else y


def dequantize(
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8] | None = None,
    offsets: NDArray[Any] | None = None,
    *,
    bits: int,
    zero: int,
) -> NDArray[np.float64]:
    """W [N, K]."""
    rows, blocks = scales.shape
    values = _unpack(codes.reshape(rows, -1), bits).reshape(rows, blocks, -1).astype(np.float64)
    zeros: NDArray[Any] = np.full((rows, blocks), zero)
    if zero_points is not None:
        zeros = _unpack(zero_points, bits)[:, :blocks]
    weight = scales.astype(np.float64)[..., None] * (values - zeros[..., None])
    if offsets is not None:
        weight += offsets.astype(np.float64)[..., None]
    matrix: NDArray[np.float64] = weight.reshape(rows, -1)
    return matrix


def _cut(
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8] | None,
    offsets: NDArray[Any] | None,
    *,
    bits: int,
    zero: int,
) -> NDArray[np.float64]:
    """W as tiles have it: made larger, then without the bits that bfloat16 lacks.

    As kernels do, in float32: what is not the product is rounded first. A code c of 8 bits is
    multiplied as c + 256 (over 256).
    """
    larger = scales.astype(np.float32) * LARGER
    added = None if offsets is None else offsets.astype(np.float32) * LARGER
    moved = 256 if bits == 8 else 0
    none = np.zeros_like(codes)
    product = dequantize(codes, larger, bits=bits, zero=-moved)
    rest = dequantize(none, larger, zero_points, added, bits=bits, zero=zero)
    rest = (rest - dequantize(none, larger, bits=bits, zero=-moved)).astype(np.float32)
    return cut((product + rest).astype(np.float32))


def round_activations(x: NDArray[np.float32], bits: int) -> NDArray[np.float64]:
    """x as the operator sees it against codes of so many bits.

    Codes are found in float32, as kernels find them; what they stand for is exact.
    """
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // GROUP, GROUP)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    steps = np.float32(LARGEST_WORD * LARGEST_BYTE if bits == 4 else LARGEST_WORD)
    scale = largest.max(axis=-2, keepdims=True) / steps
    multipliers = np.ones_like(largest)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        if bits == 4:
            per_code = np.float32(1) / (scale * np.float32(LARGEST_BYTE))
            multipliers = np.minimum(np.ceil(largest * per_code), np.float32(LARGEST_WORD))
        codes = np.rint(groups * (np.float32(1) / (scale * multipliers)))
        counts = (scale > np.float32(SMALLEST_SCALE)) & np.isfinite(scale) & (multipliers > 0)
        whole = np.where(counts, multipliers * codes.astype(np.float64), 0)
        rounded: NDArray[np.float64] = scale.astype(np.float64) * whole
    return rounded.reshape(x.shape)


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    halves: NDArray[np.uint8] = np.stack([packed & 15, packed >> 4], axis=-1)
    return halves.reshape(len(packed), -1)
