"""Chooses the next token of one request from its row of logits.

V vocabulary, K candidates left by the truncations.

| tensor        | shape | dtype   | meaning                                        |
|---------------|-------|---------|------------------------------------------------|
| logits        | [V]   | float32 | raw logits of the position; never written to   |
| candidates    | [K]   | int64   | ids that may be chosen                         |
| weights       | [K]   | float32 | their probabilities, not normalised            |
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from enginewright.runtime.errors import RequestError
from enginewright.runtime.sampling import logprobs, truncation
from enginewright.runtime.sampling.bad_words import Words
from enginewright.runtime.sampling.chain import Chain
from enginewright.runtime.sampling.custom import LogitsProcessor
from enginewright.runtime.sampling.draw import RandomStream, draw
from enginewright.runtime.sampling.grammar import Grammar
from enginewright.runtime.sampling.logprobs import Scores
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.processors import Ids, Logits, scale_temperature


@dataclass(frozen=True)
class SampledToken:
    """A chosen token; log probabilities are of the raw logits, None when not asked for.

    ``top``: token id -> (log probability, rank from 1), the chosen token first, then the
    likeliest ones in order, or those that were named.
    """

    token_id: int
    logprob: float | None = None
    top: Scores | None = None


class Sampler:
    """The sampling state of one output: its parameters, its prompt and its random numbers.

    The token of step t depends on the seed, the output's ``index`` among those of its prompt, t
    and the logits (and, through penalties and the like, on the ids so far), never on what else
    runs. ``default_seed`` serves requests without a seed; None takes fresh entropy. Prompt ids
    must be in the vocabulary. ``bad_words``: the ids of those of the parameters; ``grammar``: their
    structured_outputs, compiled. ``llm_processors``: functions that see every request's logits
    before its own.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        eos_token_ids: Collection[int],
        prompt_token_ids: Sequence[int],
        default_seed: int | None = None,
        index: int = 0,
        bad_words: Words = (),
        grammar: Grammar | None = None,
        llm_processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        params.check_vocabulary(vocab_size)
        self.params = params
        self._grammar = None if grammar is None else grammar.start()
        self._chain = Chain(
            params,
            vocab_size,
            eos_token_ids,
            prompt_token_ids,
            bad_words,
            self._grammar,
            llm_processors,
        )
        seed = params.seed if params.seed is not None else default_seed
        self._stream = RandomStream(seed, index)
        self.repeatable = params.greedy or seed is not None
        """Whether the same logits give the same tokens another time."""
        self._named = np.array(params.logprob_token_ids or (), np.int64)

    def sample(self, logits: Logits, output_token_ids: Sequence[int]) -> SampledToken:
        """The next token after ``output_token_ids``, from logits [V] that stay as they are."""
        adjusted = self._chain(logits, output_token_ids)
        if self.params.greedy:
            token = int(adjusted.argmax())
            # argmax returns the first NaN if there is one, so that one look finds any.
            _check_finite(adjusted[token], logits)
        else:
            _check_finite(adjusted.max(), logits)
            token = self._draw(adjusted, len(output_token_ids))
        if self._grammar is not None:
            self._grammar.advance(token)
        return self._with_logprobs(token, logits)

    @property
    def complete(self) -> bool:
        """Whether structured_outputs leave nothing but EOS after the tokens that were sampled."""
        return self._grammar is not None and self._grammar.finished

    def _draw(self, logits: Logits, step: int) -> int:
        candidates, survivors = truncate(logits, self.params)
        index = draw(truncation.weights_of(survivors), self._stream.uniform(step))
        return index if candidates is None else int(candidates[index])

    def _with_logprobs(self, token: int, logits: Logits) -> SampledToken:
        wanted = self.params.num_logprobs
        if wanted is None:
            return SampledToken(token)
        if self._named.size:
            scores = logprobs.named(logits, token, self._named)
        else:
            scores = logprobs.likeliest(logits, token, wanted)
        return SampledToken(token, scores[token][0], scores)


def truncate(logits: Logits, params: SamplingParams) -> tuple[Ids | None, Logits]:
    """The candidates (None: all) and their scaled logits, in the order that was asked for."""
    candidates: Ids | None = None
    # Neither the temperature nor min_p changes which are the k likeliest: top_k goes first, so
    # that the others look at few. Only in Hugging Face's order does min_p come after top_p.
    if params.top_k:
        candidates = truncation.keep_top_k(logits, params.top_k)
        logits = logits[candidates]
    logits = scale_temperature(logits, params.temperature)
    order = ("min_p", "top_p") if params.processor_order == "vllm" else ("top_p", "min_p")
    for name in order:
        if name == "min_p" and params.min_p > 0.0:
            kept = truncation.keep_min_p(logits, params.min_p)
        elif name == "top_p" and params.top_p < 1.0:
            kept = truncation.keep_top_p(logits, params.top_p)
        else:
            continue
        candidates, logits = kept if candidates is None else candidates[kept], logits[kept]
    return candidates, logits


def _check_finite(value: np.float32, logits: Logits) -> None:
    """``value``: the highest adjusted logit. The engine is at fault, or what was asked for."""
    if np.isfinite(value):
        return
    highest = logits.max()
    if np.isfinite(highest):
        raise RequestError(
            f"no token can be chosen (highest logit {value}): structured_outputs, "
            f"allowed_token_ids, bad_words, min_tokens, logit_bias and logits_processors together "
            f"leave none"
        )
    logprobs.check_usable(logits)
