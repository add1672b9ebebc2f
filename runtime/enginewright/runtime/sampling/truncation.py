"""Which of a row's positions survive a truncation; none sorts the vocabulary.

K candidates (the vocabulary before the first truncation), m survivors.

| tensor  | shape | dtype   | meaning                                                    |
|---------|-------|---------|------------------------------------------------------------|
| logits  | [K]   | float32 | scaled logits; at least one is finite, none is NaN or +inf |
| *kept*  | [m]   | int64   | ascending positions of logits that a truncation leaves     |
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.sampling import scratch
from enginewright.runtime.sampling.processors import Logits, scale_temperature

if TYPE_CHECKING:
    from enginewright.runtime.sampling.params import SamplingParams

Kept = NDArray[np.int64]

_GROUP = 64
_BINS = 4096
_SORTED_AT_ONCE = 2048


def truncate(logits: Logits, params: SamplingParams) -> tuple[Kept | None, Logits]:
    """The candidates (None: all) and their scaled logits, in the order that was asked for."""
    candidates: Kept | None = None
    # Neither the temperature nor min_p changes which are the k likeliest: top_k goes first, so
    # that the others look at few. Only in Hugging Face's order does min_p come after top_p.
    if params.top_k:
        candidates = keep_top_k(logits, params.top_k)
        logits = logits[candidates]
    logits = scale_temperature(logits, params.temperature)
    order = ("min_p", "top_p") if params.processor_order == "vllm" else ("top_p", "min_p")
    for name in order:
        if name == "min_p" and params.min_p > 0.0:
            kept = keep_min_p(logits, params.min_p)
        elif name == "top_p" and params.top_p < 1.0:
            kept = keep_top_p(logits, params.top_p)
        else:
            continue
        candidates, logits = kept if candidates is None else candidates[kept], logits[kept]
    return candidates, logits


def keep_min_p(logits: Logits, min_p: float) -> Kept:
    """Positions whose probability is at least ``min_p`` times the highest."""
    if min_p <= 0.0:
        return np.arange(logits.size)
    # p / p_max = exp(l - l_max): no softmax over the vocabulary is needed.
    return _reaching(logits, logits.max() + np.float32(math.log(min_p)))


def keep_top_k(logits: Logits, k: int) -> Kept:
    """Positions of the k highest logits, and of those equal to the lowest of them."""
    if k <= 0 or k >= logits.size:
        return np.arange(logits.size)
    pool, values = _pool_of_highest(logits, k)
    return pool[values >= _kth_highest(values, k)]


def keep_top_p(logits: Logits, top_p: float) -> Kept:
    """Positions of the fewest highest logits whose probabilities together reach ``top_p``.

    Of equal logits, the first ones.
    """
    if top_p >= 1.0:
        return np.arange(logits.size)
    weights = weights_of(logits)
    total = float(weights.sum(dtype=np.float64))
    # All that weigh less than an even share of what is to be left out are left out.
    share = (1.0 - top_p) * total / logits.size
    pool = _reaching(weights, np.float32(share * (1.0 - 1e-6)))
    if pool.size > _SORTED_AT_ONCE:
        return _keep_by_bins(pool, logits[pool], weights[pool], top_p * total)
    pool = pool[np.argsort(-logits[pool], kind="stable")]
    reached = np.cumsum(weights[pool], dtype=np.float64)
    return np.sort(pool[: _needed(reached, top_p * total)])


def highest(logits: Logits, count: int) -> Kept:
    """Positions of the ``count`` highest logits, highest first; of equals, the first ones."""
    if count >= logits.size:
        return np.argsort(-logits, kind="stable")
    pool, values = _pool_of_highest(logits, count)
    lowest = _kth_highest(values, count)
    above = pool[values > lowest]
    equal = pool[values == lowest][: count - above.size]
    positions = np.sort(np.concatenate((above, equal)))
    return positions[np.argsort(-logits[positions], kind="stable")]


def weights_of(logits: Logits) -> Logits:
    """Probabilities that are not normalised, in a row that the thread's next call writes to."""
    weights = scratch.floats("weights", logits.size)
    np.subtract(logits, logits.max(), out=weights)
    return np.exp(weights, out=weights)


def _pool_of_highest(logits: Logits, k: int) -> tuple[Kept, Logits]:
    """Few positions among which the k highest logits are, and their values."""
    groups = logits.size // _GROUP
    # k groups have a highest member that reaches the k-th highest of all groups' highest.
    few = k <= groups
    peaks = logits[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0) if few else logits
    pool = _reaching(logits, _kth_highest(peaks, k))
    return pool, logits[pool]


def _reaching(values: Logits, least: np.float32) -> Kept:
    """Positions of the values that are at least ``least``."""
    reached = scratch.flags("reached", values.size)
    return np.flatnonzero(np.greater_equal(values, least, out=reached))


def _kth_highest(values: Logits, k: int) -> np.float32:
    cut = values.size - k
    return np.float32(np.partition(values, cut)[cut])


def _keep_by_bins(pool: Kept, logits: Logits, weights: Logits, goal: float) -> Kept:
    """Those of the pool in bins of nearly equal logits, the last of which alone is sorted."""
    top, bottom = float(logits.max()), float(logits.min())
    scale = np.float32((_BINS - 1) / max(top - bottom, 1e-30))
    bins = ((np.float32(top) - logits) * scale).astype(np.int64)
    np.minimum(bins, _BINS - 1, out=bins)
    sums = np.cumsum(np.bincount(bins, weights.astype(np.float64), _BINS))
    last = min(int(np.searchsorted(sums, goal, side="left")), int(bins.max()))
    inside = np.flatnonzero(bins == last)
    inside = inside[np.argsort(-logits[inside], kind="stable")]
    before = float(sums[last - 1]) if last else 0.0
    reached = before + np.cumsum(weights[inside], dtype=np.float64)
    kept = bins < last
    kept[inside[: _needed(reached, goal)]] = True
    return pool[kept]


def _needed(reached: NDArray[np.float64], goal: float) -> int:
    """How many stay: all whose predecessors have not reached the goal; the first always."""
    return int(np.searchsorted(reached[:-1], goal, side="left")) + 1
