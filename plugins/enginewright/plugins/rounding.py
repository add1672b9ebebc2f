"""Rounding and cutting to bfloat16, as the kernels of the CPU do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ties_to_even(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The nearest values of bfloat16."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    lost = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    rounded = ((bits + lost) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x).astype(np.float64)


def cut(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Values without the bits that bfloat16 lacks: the nearest towards 0."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
