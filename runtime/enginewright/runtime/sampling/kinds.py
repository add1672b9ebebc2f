"""How a request is sampled and how its outputs are handed out, with vLLM's names."""

from __future__ import annotations

from enum import IntEnum


class SamplingType(IntEnum):
    """Whether draws are made, and whether they can be repeated."""

    GREEDY = 0
    RANDOM = 1
    RANDOM_SEED = 2


class RequestOutputKind(IntEnum):
    """What each output of a request that is followed as it runs holds."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """What is new since the last one."""
    FINAL_ONLY = 2
    """Nothing before the end, then everything."""
