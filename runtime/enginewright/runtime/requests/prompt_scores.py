"""Log probabilities of a prompt's own tokens, taken as its chunks are computed.

| tensor | shape  | dtype   | meaning                                              |
|--------|--------|---------|------------------------------------------------------|
| rows   | [S, V] | float32 | logits after the S tokens of the prompt from a start |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.requests.flat_logprobs import FlatLogprobs
from enginewright.runtime.requests.outputs import Logprob, PromptLogprobs
from enginewright.runtime.sampling.logprobs import (
    Scores,
    check_usable,
    prompt_scores,
    token_matrix,
)
from enginewright.runtime.sampling.params import SamplingParams

TokenText = Callable[[int], str]


class PromptScores:
    """What a request wants to know of its prompt; ``take`` gets the logits chunk by chunk."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        token_text: TokenText | None = None,
    ) -> None:
        self._prompt = prompt_token_ids
        self._count = params.prompt_logprobs
        self._ids = np.array(params.prompt_logprob_token_ids or (), np.int64)
        self._start = params.prompt_logprob_start or 0
        self._token_text = token_text
        self._taken = 0
        self._logprobs: PromptLogprobs = FlatLogprobs() if params.flat_logprobs else []
        self._logprobs.append(None)
        self._rows: list[NDArray[np.float32]] = []

    def take(self, start: int, rows: NDArray[np.float32]) -> None:
        """The logits after the tokens from ``start`` on; the last token's are of the output.

        What was taken before may come again. Raises EnginewrightError if they are no numbers.
        """
        if self._taken == len(self._prompt) - 1:
            return
        known = self._taken - start
        assert known >= 0, "a chunk of the prompt was left out"
        start, rows = self._taken, rows[known:]
        followers = self._prompt[start + 1 : start + 1 + len(rows)]
        rows = rows[: len(followers)]
        check_usable(rows)
        self._taken += len(rows)
        if self._count is not None:
            scores = prompt_scores(rows, followers, self._count)
            self._logprobs.extend(with_text(each, self._token_text) for each in scores)
        if self._ids.size:
            self._rows.append(token_matrix(rows[max(self._start - start, 0) :], self._ids))

    @property
    def logprobs(self) -> PromptLogprobs | None:
        """For each token so far; None if not asked for."""
        return None if self._count is None else self._logprobs[:]

    @property
    def matrix(self) -> NDArray[np.float32] | None:
        """Of the ids that were named, at each position so far; None if none were."""
        if not self._ids.size:
            return None
        return np.concatenate([np.empty((0, self._ids.size), np.float32), *self._rows])


def with_text(scores: Scores, token_text: TokenText | None) -> dict[int, Logprob]:
    """The scores as users get them."""
    return {
        token: Logprob(logprob, rank, token_text and token_text(token))
        for token, (logprob, rank) in scores.items()
    }
