"""Changes to a row of logits, one function each; all but the temperature's work in place.

V vocabulary, K candidates, n ids.

| tensor  | shape | dtype   | meaning                                                         |
|---------|-------|---------|-----------------------------------------------------------------|
| logits  | [V]   | float32 | a scratch copy of the row, written to; -inf cannot be chosen    |
| ids     | [n]   | int64   | token ids, in 0..V-1                                            |
| biases  | [n]   | float32 | what is added to the logits of ids                              |
| counts  | [n]   | float32 | how often each of ids is in the output                          |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.sampling import scratch

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]


def mask_tokens(logits: Logits, ids: Ids) -> None:
    """Make the tokens impossible."""
    logits[ids] = -np.inf


def keep_only(logits: Logits, ids: Ids) -> None:
    """Make all other tokens impossible."""
    kept = logits[ids]
    logits.fill(-np.inf)
    logits[ids] = kept


def add_bias(logits: Logits, ids: Ids, biases: Logits) -> None:
    """Add to the logits of ids, each of which is there once."""
    logits[ids] += biases


def repetition_penalty(logits: Logits, ids: Ids, penalty: float) -> None:
    """Divide the positive logits of ids by the penalty, multiply the negative ones; once each.

    Ids may be there many times: all copies write the same value.
    """
    chosen = logits[ids]
    factor = np.float32(penalty)
    logits[ids] = np.where(chosen > 0, chosen / factor, chosen * factor)


def output_penalties(
    logits: Logits, ids: Ids, counts: Logits, frequency: float, presence: float
) -> None:
    """Subtract ``frequency`` as often as each of ids, which are there once, counts; ``presence``
    once."""
    logits[ids] -= np.float32(frequency) * counts + np.float32(presence)


def scale_temperature(logits: Logits, temperature: float) -> Logits:
    """Divided by the temperature, in a row that the thread's next call writes to.

    The same array where nothing changes.
    """
    if temperature == 1.0:
        return logits
    scaled = scratch.floats("scaled", logits.size)
    return np.divide(logits, np.float32(temperature), out=scaled)
