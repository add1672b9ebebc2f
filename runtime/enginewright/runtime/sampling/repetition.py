"""Ends an output that goes round in circles: a pattern of tokens repeated at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling.checks import whole


@dataclass(frozen=True)
class RepetitionDetectionParams:
    """Which repetitions end an output; the defaults end none."""

    max_pattern_size: int = 0
    """Tokens of the longest pattern looked for; 0: do not look."""
    min_pattern_size: int = 0
    """Tokens of the shortest one, at most ``max_pattern_size``; 0 counts as 1."""
    min_count: int = 0
    """How often in a row the pattern must be there, at least 2."""

    def __post_init__(self) -> None:
        longest = whole("max_pattern_size", self.max_pattern_size, 0)
        whole("min_pattern_size", self.min_pattern_size, 0, longest, high_name="max_pattern_size")
        whole("min_count", self.min_count, 0)
        if longest and self.min_count < 2:
            raise SamplingParamsError(
                f"min_count={self.min_count} is not legal: it must be an integer of at least 2, "
                f"or max_pattern_size 0 to detect no repetition"
            )


def repeats(token_ids: Sequence[int], params: RepetitionDetectionParams) -> bool:
    """Whether the ids end in ``min_count`` copies of a pattern of a size that is looked for."""
    shortest = max(params.min_pattern_size, 1)
    for size in range(shortest, params.max_pattern_size + 1):
        length = size * params.min_count
        if length > len(token_ids):
            return False
        tail = token_ids[len(token_ids) - length :]
        # A run that equals itself moved by one pattern is that pattern again and again.
        if tail[size:] == tail[:-size]:
            return True
    return False
