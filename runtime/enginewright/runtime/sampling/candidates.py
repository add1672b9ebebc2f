"""Chooses from the highest logits of a row, where these settle what the whole row would give.

Of K highest logits the C above the lowest are all that there are above it: every other token is at
or below that *floor*. As long as processors only lower logits, whatever stays above the floor is
known exactly, and so is a choice that no other token can have a part in.

| tensor   | shape | dtype   | meaning                                                |
|----------|-------|---------|--------------------------------------------------------|
| ids      | [C]   | int64   | the tokens above the floor, ascending                  |
| logits   | [C]   | float32 | their raw logits                                       |
| adjusted | [C]   | float32 | the same after the request's processors                |
| *kept*   | [m]   | int64   | positions that the truncations leave, ascending        |
| *scaled* | [m]   | float32 | their logits over the temperature                      |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from enginewright.runtime.engine import TopLogits
from enginewright.runtime.sampling import truncation
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.processors import Ids, Logits, scale_temperature
from enginewright.runtime.sampling.truncation import Kept, truncate, weights_of

_NORMALIZER_ERROR = 1e-4
"""Relative, of a device's sum over the vocabulary in float32."""
_SUM_ERROR = 1e-9
"""Relative, between two orders of adding weights in float64."""
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Candidates:
    """What is known of a row; see the module's table. ``others``: tokens that it says nothing of
    but that they are at or below the floor."""

    ids: Ids
    logits: Logits
    floor: np.float32
    log_normalizer: float
    others: int

    @classmethod
    def of(cls, row: TopLogits, vocab_size: int) -> Candidates | None:
        """None where nothing is above the floor, or something is no finite number."""
        floor = row.logits[-1]
        above = row.logits > floor
        if not math.isfinite(row.log_normalizer) or not above.any():
            return None
        ids, logits = row.ids[above].astype(np.int64), row.logits[above]
        order = np.argsort(ids)
        others = vocab_size - ids.size
        return cls(ids[order], logits[order], floor, row.log_normalizer, others)


def highest_known(known: Candidates, adjusted: Logits) -> int | None:
    """The position of the first of the highest logits; None where another token may have one."""
    best = int(adjusted.argmax())
    return best if adjusted[best] > known.floor else None


def truncate_known(
    known: Candidates, adjusted: Logits, params: SamplingParams
) -> tuple[Kept, Logits] | None:
    """``kept`` and ``scaled``; None where a truncation may leave other tokens.

    The first truncation decides that: those behind it look at what it leaves.
    """
    if highest_known(known, adjusted) is None:
        return None
    if params.top_k:
        settled = int(np.count_nonzero(adjusted > known.floor)) >= params.top_k
    elif params.min_p > 0.0 and (params.processor_order == "vllm" or params.top_p >= 1.0):
        scaled = scale_temperature(adjusted, params.temperature)
        least = scaled.max() + np.float32(math.log(params.min_p))
        settled = bool(known.floor / np.float32(params.temperature) < least)
    elif params.top_p < 1.0:
        return _by_top_p(known, adjusted, params)
    else:
        settled = False
    if not settled:
        return None
    kept, scaled = truncate(adjusted, params)
    assert kept is not None
    return kept, scaled


def _by_top_p(
    known: Candidates, adjusted: Logits, params: SamplingParams
) -> tuple[Kept, Logits] | None:
    """top_p before all else: it needs what all other tokens weigh, of which bounds are known."""
    scaled = scale_temperature(adjusted, params.temperature)
    weights = weights_of(scaled)
    order = np.argsort(-scaled, kind="stable")
    reached = np.cumsum(weights[order], dtype=np.float64)
    least, most = (reached[-1] + each for each in _others_weight(known, adjusted, params))
    goals = params.top_p * least * (1 - _SUM_ERROR), params.top_p * most * (1 + _SUM_ERROR)
    first, last = (int(np.searchsorted(reached, goal, side="left")) for goal in goals)
    if first != last or last == reached.size or not adjusted[order[last]] > known.floor:
        return None
    kept = np.sort(order[: last + 1])
    scaled = scaled[kept]
    if params.min_p > 0.0:
        stays = truncation.keep_min_p(scaled, params.min_p)
        kept, scaled = kept[stays], scaled[stays]
    return kept, scaled


def _others_weight(
    known: Candidates, adjusted: Logits, params: SamplingParams
) -> tuple[float, float]:
    """The least and the most that all other tokens weigh together, the likeliest being 1.

    With p their sum at temperature 1 and f the floor there, none being above it, the sum of their
    powers a = 1 / temperature is at most p * f^(a - 1) for a >= 1, and n^(1 - a) * p^a below.
    """
    top, power = float(known.logits.max()), 1.0 / params.temperature
    total = math.exp(known.log_normalizer - top)
    rest = total - float(weights_of(known.logits).sum(dtype=np.float64))
    error = total * _NORMALIZER_ERROR
    most = max(rest, 0.0) + error
    if power == 1.0 and adjusted is known.logits:
        return max(rest - error, 0.0), most
    log_most = math.log(most)
    if power >= 1.0:
        log_most += (float(known.floor) - top) * (power - 1.0)
    else:
        log_most = (1.0 - power) * math.log(known.others) + power * log_most
    log_most += (top - float(adjusted.max())) * power
    return 0.0, math.exp(min(log_most, _LARGEST_EXPONENT))
