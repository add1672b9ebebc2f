"""Chooses the next token of one request from its row of logits.

V vocabulary, K candidates left by the truncations.

| tensor        | shape | dtype   | meaning                                        |
|---------------|-------|---------|------------------------------------------------|
| logits        | [V]   | float32 | raw logits of the position; never written to   |
| candidates    | [K]   | int64   | ids that may be chosen                         |
| weights       | [K]   | float32 | their probabilities, not normalised            |
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from enginewright.runtime.engine import RowLogits, TopLogits
from enginewright.runtime.errors import RequestError
from enginewright.runtime.sampling import logprobs
from enginewright.runtime.sampling.bad_words import Words
from enginewright.runtime.sampling.candidates import Candidates, highest_known, truncate_known
from enginewright.runtime.sampling.chain import Chain
from enginewright.runtime.sampling.custom import LogitsProcessor
from enginewright.runtime.sampling.draw import RandomStream, draw
from enginewright.runtime.sampling.grammar import Grammar
from enginewright.runtime.sampling.logprobs import Scores
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.processors import Logits
from enginewright.runtime.sampling.truncation import truncate, weights_of


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
        self._truncates = (
            params.greedy or params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
        )
        self._vocab_size = vocab_size
        self._named = np.array(params.logprob_token_ids or (), np.int64)

    def sample(self, logits: RowLogits, output_token_ids: Sequence[int]) -> SampledToken:
        """The next token after ``output_token_ids``, from logits [V] that stay as they are.

        Of a row on the device the whole is brought only where its highest logits do not settle
        what it gives.
        """
        if isinstance(logits, TopLogits):
            settled = self._settle(logits, output_token_ids)
            if settled is not None:
                return settled
            logits = logits.whole
        adjusted = self._chain(logits, output_token_ids)
        if self.params.greedy:
            token = int(adjusted.argmax())
            # argmax returns the first NaN if there is one, so that one look finds any.
            _check_finite(adjusted[token], logits)
        else:
            _check_finite(adjusted.max(), logits)
            token = self._draw(adjusted, len(output_token_ids))
        return self._with_logprobs(self._chosen(token), logits)

    def possible(self, draft: list[int]) -> list[int]:
        """The leading tokens of a draft that structured_outputs do not forbid."""
        return draft if self._grammar is None else draft[: self._grammar.possible(draft)]

    @property
    def complete(self) -> bool:
        """Whether structured_outputs leave nothing but EOS after the tokens that were sampled."""
        return self._grammar is not None and self._grammar.finished

    def _draw(self, logits: Logits, step: int) -> int:
        candidates, survivors = truncate(logits, self.params)
        index = draw(weights_of(survivors), self._stream.uniform(step))
        return index if candidates is None else int(candidates[index])

    def _settle(self, row: TopLogits, output: Sequence[int]) -> SampledToken | None:
        """What ``sample`` gives, if the row's highest logits settle it."""
        if self._takes_the_highest(row, len(output)):
            return SampledToken(self._chosen(int(row.ids[0])))
        if not self._truncates:  # every token has a part in the draw
            return None
        known, wanted = Candidates.of(row, self._vocab_size), self.params.num_logprobs
        if known is None or self._named.size or not -1 < (wanted or 0) <= known.ids.size:
            return None
        adjusted = self._chain.of_some(known.ids, known.logits, output)
        position = None if adjusted is None else self._choose(known, adjusted, len(output))
        if position is None:
            return None
        token = self._chosen(int(known.ids[position]))
        if wanted is None:
            return SampledToken(token)
        found = logprobs.likeliest(known.logits, position, wanted, known.log_normalizer)
        scores = {int(known.ids[at]): score for at, score in found.items()}
        return SampledToken(token, scores[token][0], scores)

    def _takes_the_highest(self, row: TopLogits, step: int) -> bool:
        """Whether nothing else is asked for, and one logit is above all others."""
        plain = self.params.greedy and self.params.num_logprobs is None
        return (
            plain
            and not self._chain.due(step)
            and math.isfinite(row.log_normalizer)
            and row.logits.size > 1
            and bool(row.logits[0] > row.logits[1])
        )

    def _choose(self, known: Candidates, adjusted: Logits, step: int) -> int | None:
        """The position of the chosen token among the known, if other tokens have no part in it."""
        if self.params.greedy:
            return highest_known(known, adjusted)
        found = truncate_known(known, adjusted, self.params)
        if found is None:
            return None
        kept, scaled = found
        return int(kept[draw(weights_of(scaled), self._stream.uniform(step))])

    def _chosen(self, token: int) -> int:
        if self._grammar is not None:
            self._grammar.advance(token)
        return token

    def _with_logprobs(self, token: int, logits: Logits) -> SampledToken:
        wanted = self.params.num_logprobs
        if wanted is None:
            return SampledToken(token)
        if self._named.size:
            scores = logprobs.named(logits, token, self._named)
        else:
            scores = logprobs.likeliest(logits, token, wanted)
        return SampledToken(token, scores[token][0], scores)


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
