"""Pure functions from logits to logits, or to the positions that survive a truncation.

V vocabulary, K candidates (V of them before the first truncation), n ids.

| tensor  | shape | dtype   | meaning                                                    |
|---------|-------|---------|------------------------------------------------------------|
| logits  | [K]   | float32 | raw, penalised or scaled logits; -inf cannot be chosen     |
| ids     | [n]   | int64   | token ids, in 0..V-1                                       |
| *kept*  | [m]   | int64   | ascending positions of logits that a truncation leaves     |

Order, as in vLLM: min_tokens mask, repetition, frequency and presence penalties,
temperature, min_p, top_k, top_p. min_p and top_k are both thresholds on the value, so the
sampler may apply them in either order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]
Kept = NDArray[np.int64]

_FIRST_CANDIDATES = 512


def mask_tokens(logits: Logits, ids: Ids) -> Logits:
    """Make the tokens impossible."""
    masked = logits.copy()
    masked[ids] = -np.inf
    return masked


def repetition_penalty(logits: Logits, ids: Ids, penalty: float) -> Logits:
    """Divide the positive logits of ids by the penalty, multiply the negative ones; once each."""
    penalised = logits.copy()
    chosen = logits[ids]
    factor = np.float32(penalty)
    penalised[ids] = np.where(chosen > 0, chosen / factor, chosen * factor)
    return penalised


def output_penalties(logits: Logits, ids: Ids, frequency: float, presence: float) -> Logits:
    """Subtract ``frequency`` for each time that a token is in ids, and ``presence`` once."""
    penalised = logits.copy()
    unique, counts = np.unique(ids, return_counts=True)
    penalised[unique] -= np.float32(frequency) * counts.astype(np.float32) + np.float32(presence)
    return penalised


def scale_temperature(logits: Logits, temperature: float) -> Logits:
    """Divide by the temperature."""
    return logits if temperature == 1.0 else logits / np.float32(temperature)


def keep_min_p(logits: Logits, min_p: float) -> Kept:
    """Positions whose probability is at least ``min_p`` times the highest."""
    if min_p <= 0.0:
        return np.arange(logits.size)
    # p / p_max = exp(l - l_max): no softmax over the vocabulary is needed.
    return np.flatnonzero(logits >= logits.max() + np.float32(math.log(min_p)))


def keep_top_k(logits: Logits, k: int) -> Kept:
    """Positions of the k highest logits, and of those equal to the lowest of them."""
    if k <= 0 or k >= logits.size:
        return np.arange(logits.size)
    cut = logits.size - k
    return np.flatnonzero(logits >= np.partition(logits, cut)[cut])


def keep_top_p(logits: Logits, top_p: float) -> Kept:
    """Positions of the fewest highest logits whose probabilities together reach ``top_p``.

    Only as many of the highest are sorted as are needed.
    """
    if top_p >= 1.0:
        return np.arange(logits.size)
    weights = np.exp(logits - logits.max())
    goal = top_p * float(weights.sum(dtype=np.float64))
    count = min(_FIRST_CANDIDATES, logits.size)
    while True:
        order = highest(logits, count)
        reached = np.cumsum(weights[order], dtype=np.float64)
        if count == logits.size or reached[-1] >= goal:
            break
        count = min(count * 8, logits.size)
    # A position stays when those before it have not reached the goal; the first always stays.
    needed = int(np.searchsorted(reached[:-1], goal, side="left")) + 1
    return np.sort(order[:needed])


def log_normaliser(logits: Logits) -> float:
    """log(sum(exp(logits))), so that logits minus it are log probabilities."""
    highest = logits.max()
    total = np.exp(logits - highest).sum(dtype=np.float64)
    return float(highest) + math.log(float(total))


def highest(logits: Logits, count: int) -> Kept:
    """Positions of the ``count`` highest logits, highest first; of equals, the first ones."""
    if count < logits.size:
        cut = logits.size - count
        lowest = np.partition(logits, cut)[cut]
        above = np.flatnonzero(logits > lowest)
        equal = np.flatnonzero(logits == lowest)[: count - above.size]
        positions = np.sort(np.concatenate((above, equal)))
    else:
        positions = np.arange(logits.size)
    return positions[np.argsort(-logits[positions], kind="stable")]
