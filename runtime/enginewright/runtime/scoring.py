"""Logits at every position of given tokens, by the engine's own steps.

| tensor  | shape  | dtype   | meaning                                              |
|---------|--------|---------|------------------------------------------------------|
| *logits* | [S, V] | float32 | row t: what follows the tokens 0..t of the sequence |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.engine import EngineInfo
from enginewright.runtime.scheduling.core import EngineCore, step_batch

Logits = NDArray[np.float32]


def sequence_logits(core: EngineCore, info: EngineInfo, ids: Sequence[int], chunk: int) -> Logits:
    """One sequence alone, ``chunk`` tokens a step: the first as prefill, then over the past."""
    result = np.empty((len(ids), info.vocab_size), np.float32)
    with core.lend(1, len(ids)) as (engine, table):
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            batch = step_batch([part], [start], table, range(len(part)))
            result[start : start + len(part)] = np.asarray(engine.step(batch))
    return result


def batch_logits(core: EngineCore, sequences: Sequence[Sequence[int]]) -> list[Logits]:
    """All sequences in one ragged prefill step."""
    width = max(map(len, sequences))
    index = [
        row * width + position for row, ids in enumerate(sequences) for position in range(len(ids))
    ]
    with core.lend(len(sequences), width) as (engine, table):
        logits = np.asarray(engine.step(step_batch(sequences, [0] * len(sequences), table, index)))
        ends = np.cumsum([len(ids) for ids in sequences])
        return [part.copy() for part in np.split(logits, ends[:-1])]
