"""The operators over rows in plain numpy: the meaning that every kernel is held to.

Tensors: contract.py. Results are float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def add_rms_norm(
    x: NDArray[np.float32], y: NDArray[np.float32], weight: NDArray[np.float32], epsilon: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """normed and total, both [..., K]; the total is rounded to float32, as kernels round it."""
    total = (x + y).astype(np.float64)
    mean: NDArray[Any] = np.mean(total**2, axis=-1, keepdims=True)
    return total / np.sqrt(mean + epsilon) * weight, total


def top_logits(
    logits: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float64]]:
    """top_logits and top_ids, both [L, k], and log_normalizer [L]."""
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :k].astype(np.int32)
    wide = logits.astype(np.float64)
    highest = wide.max(axis=-1, keepdims=True)
    total = np.exp(wide - highest).sum(axis=-1)
    return np.take_along_axis(logits, ids, axis=-1), ids, highest[:, 0] + np.log(total)


def swiglu(gate_up: NDArray[Any]) -> NDArray[np.float64]:
    """[..., K] of [..., 2 K]."""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
    out: NDArray[np.float64] = gate / (1 + np.exp(-gate)) * up
    return out
