"""The likeliest continuations of one beam, from its row of raw logits.

V vocabulary, m candidates.

| tensor     | shape | dtype   | meaning                                             |
|------------|-------|---------|-----------------------------------------------------|
| logits     | [V]   | float32 | raw logits after the beam, never written to         |
| allowed    | [n]   | int64   | ascending ids that may be chosen                    |
| *tokens*   | [m]   | int64   | the likeliest that may be chosen, likeliest first   |
| *logprobs* | [m]   | float32 | theirs, over the whole vocabulary                   |
| *ranks*    | [m]   | int64   | from 1, over the whole vocabulary                   |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.sampling.logprobs import log_normaliser
from enginewright.runtime.sampling.processors import Ids, Logits
from enginewright.runtime.sampling.truncation import highest


@dataclass(frozen=True, eq=False)
class Candidates:
    """See the module's table; without ranks where only some tokens were allowed."""

    tokens: Ids
    logprobs: NDArray[np.float32]
    ranks: Ids | None = None


def likeliest(logits: Logits, count: int, allowed: Ids | None, barred: Ids) -> Candidates:
    """The ``count`` likeliest tokens, of those ``allowed`` if given, without those ``barred``.

    What is left out does not change the log probabilities of the others.
    """
    best = logits.max()
    if not np.isfinite(best):
        raise EnginewrightError(
            f"the engine gave no usable logits (highest value {best}): its numbers overflow, or "
            f"its files are damaged; run `enginewright verify` on the artifact"
        )
    ranks = None
    if allowed is None:
        tokens = highest(logits, count + barred.size)
        kept = np.flatnonzero(~np.isin(tokens, barred))[:count]
        tokens, ranks = tokens[kept], kept + 1
    else:
        allowed = allowed[~np.isin(allowed, barred)]
        tokens = allowed[highest(logits[allowed], count)]
    possible = logits[tokens] > -np.inf
    if not possible.all():
        tokens = tokens[possible]
        ranks = None if ranks is None else ranks[possible]
    return Candidates(tokens, _logprobs(logits, tokens, best), ranks)


def _logprobs(logits: Logits, tokens: Ids, best: np.float32) -> NDArray[np.float32]:
    # In the order of torch's log_softmax, so that float32 rounds in the same places.
    shift = np.float32(log_normaliser(logits) - float(best))
    return (logits[tokens] - best) - shift
