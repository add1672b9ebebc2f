"""Chooses the next token of one request from its row of logits.

V vocabulary, K candidates left by the truncations.

| tensor        | shape | dtype   | meaning                                        |
|---------------|-------|---------|------------------------------------------------|
| logits        | [V]   | float32 | raw logits of the position; never written to   |
| candidates    | [K]   | int64   | ids that may be chosen                         |
| weights       | [K]   | float32 | their probabilities, not normalised            |
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import EnginewrightError, SamplingParamsError
from enginewright.runtime.sampling import processors
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.processors import Ids, Logits

_BLOCK = 512


@dataclass(frozen=True)
class SampledToken:
    """A chosen token; log probabilities are of the raw logits, None when not asked for.

    ``top``: token id -> (log probability, rank from 1), the chosen token first, then the
    likeliest ones in order.
    """

    token_id: int
    logprob: float | None = None
    top: dict[int, tuple[float, int]] | None = None


class Sampler:
    """The sampling state of one request: its parameters, its prompt and its random numbers.

    The token of step t depends on the seed, t and the logits (and, through penalties, on the
    ids so far), never on what else runs. ``default_seed`` serves requests without a seed;
    None takes fresh entropy. Prompt ids must be in the vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        eos_token_ids: Collection[int],
        prompt_token_ids: Sequence[int],
        default_seed: int | None = None,
    ) -> None:
        self.params = params
        self._vocab_size = vocab_size
        self._prompt = prompt_token_ids
        self._barred = self._barred_before_min_tokens(eos_token_ids)
        seed = params.seed if params.seed is not None else default_seed
        self._key = secrets.randbits(64) if seed is None else seed % 2**64

    def sample(self, logits: Logits, output_token_ids: Sequence[int]) -> SampledToken:
        """The next token after ``output_token_ids``, from logits [V] that stay as they are."""
        adjusted = self._adjust(logits, output_token_ids)
        if self.params.greedy:
            token = int(adjusted.argmax())
            # argmax returns the first NaN if there is one, so that one look finds any.
            _check_finite(adjusted[token])
        else:
            token = self._draw(adjusted, len(output_token_ids))
        if self.params.logprobs is None:
            return SampledToken(token)
        return _with_logprobs(token, logits, self.params.logprobs)

    def _adjust(self, logits: Logits, output: Sequence[int]) -> Logits:
        """Mask and penalise; the logits themselves when nothing is asked."""
        params = self.params
        if len(output) < params.min_tokens and self._barred.size:
            logits = processors.mask_tokens(logits, self._barred)
        if params.repetition_penalty != 1.0:
            seen = np.union1d(self._unique_prompt, np.asarray(output, dtype=np.int64))
            logits = processors.repetition_penalty(logits, seen, params.repetition_penalty)
        if output and (params.frequency_penalty or params.presence_penalty):
            ids = np.asarray(output, dtype=np.int64)
            logits = processors.output_penalties(
                logits, ids, params.frequency_penalty, params.presence_penalty
            )
        return logits

    def _draw(self, logits: Logits, step: int) -> int:
        highest = logits.max()
        _check_finite(highest)
        candidates, survivors = self._truncate(logits)
        weights = np.exp(survivors - survivors.max())
        index = _inverse_cdf(weights, self._uniform(step))
        return index if candidates is None else int(candidates[index])

    def _truncate(self, logits: Logits) -> tuple[Ids | None, Logits]:
        """The candidates (None: all) and their scaled logits."""
        params = self.params
        candidates: Ids | None = None
        if params.top_k:
            candidates = processors.keep_top_k(logits, params.top_k)
            logits = logits[candidates]
        logits = processors.scale_temperature(logits, params.temperature)
        if params.min_p > 0.0:
            kept = processors.keep_min_p(logits, params.min_p)
            candidates, logits = _narrow(candidates, kept), logits[kept]
        if params.top_p < 1.0:
            kept = processors.keep_top_p(logits, params.top_p)
            candidates, logits = _narrow(candidates, kept), logits[kept]
        return candidates, logits

    def _uniform(self, step: int) -> float:
        """A number in [0, 1) from a counter-based generator: the same for a seed and a step."""
        # The step is the counter's second word: 2**64 draws of each step are free for later use.
        bits = np.random.Philox(key=self._key, counter=[0, step, 0, 0]).random_raw()
        return float(int(bits) >> 11) * 2.0**-53

    @cached_property
    def _unique_prompt(self) -> Ids:
        return np.unique(np.asarray(self._prompt, dtype=np.int64))

    def _barred_before_min_tokens(self, eos_token_ids: Collection[int]) -> Ids:
        outside = [token for token in self.params.stop_ids if token >= self._vocab_size]
        if outside:
            raise SamplingParamsError(
                f"stop_token_ids={outside} are not in the vocabulary: it must be ids from 0 to "
                f"{self._vocab_size - 1}"
            )
        eos = {token for token in eos_token_ids if token < self._vocab_size}
        barred = eos.union(self.params.stop_ids)
        if self.params.min_tokens and len(barred) == self._vocab_size:
            raise SamplingParamsError(
                f"min_tokens={self.params.min_tokens} leaves no token to choose: stop_token_ids "
                f"and the model's EOS cover the whole vocabulary"
            )
        return np.array(sorted(barred), dtype=np.int64)


def _narrow(candidates: Ids | None, kept: Ids) -> Ids:
    return kept if candidates is None else candidates[kept]


def _inverse_cdf(weights: NDArray[np.float32], uniform: float) -> int:
    """The position where the running sum of the weights passes ``uniform`` of their total.

    Sums of blocks are formed first: a running sum over a whole vocabulary is ten times slower.
    """
    starts = np.arange(0, weights.size, _BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    goal = uniform * float(sums[-1])
    block = int(np.searchsorted(sums, goal, side="right"))
    if block == sums.size:  # the product was rounded up to the total
        return int(np.flatnonzero(weights)[-1])
    before = float(sums[block - 1]) if block else 0.0
    inside = weights[starts[block] : starts[block] + _BLOCK]
    index = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), goal - before, side="right"))
    # Where rounding passes the block's end, the block's last possible token is the one.
    index = min(index, int(np.flatnonzero(inside)[-1]))
    return int(starts[block]) + index


def _with_logprobs(token: int, logits: Logits, wanted: int) -> SampledToken:
    normaliser = processors.log_normaliser(logits)
    logprob = float(logits[token]) - normaliser
    rank = int(np.count_nonzero(logits >= logits[token]))
    top = {token: (logprob, rank)}
    count = logits.size if wanted == -1 else wanted
    if count:
        likeliest = processors.highest(logits, count)
        for position, other in enumerate(likeliest.tolist(), start=1):
            top[other] = (float(logits[other]) - normaliser, position)
    return SampledToken(token, logprob, top)


def _check_finite(value: np.float32) -> None:
    if not np.isfinite(value):
        raise EnginewrightError(
            f"the engine gave no usable logits (highest value {value}): its numbers overflow, or "
            f"its files are damaged; run `enginewright verify` on the artifact"
        )
