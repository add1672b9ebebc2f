"""The processors of a request, in a published order: what is done to its logits before a draw.

| tensor  | shape | dtype   | meaning                                            |
|---------|-------|---------|----------------------------------------------------|
| logits  | [V]   | float32 | the engine's row, never written to                 |
| scratch | [V]   | float32 | a copy of it that processors write to, one a token |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling import processors, scratch
from enginewright.runtime.sampling.bad_words import Words, completing
from enginewright.runtime.sampling.custom import CustomProcessors, LogitsProcessor
from enginewright.runtime.sampling.grammar import GrammarState
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.processors import Ids, Logits
from enginewright.runtime.sampling.tally import Tally

ORDERS: dict[str, tuple[str, ...]] = {
    "vllm": (
        "structured_outputs",
        "allowed_token_ids",
        "bad_words",
        "min_tokens",
        "logit_bias",
        "logits_processors",
        "repetition_penalty",
        "frequency and presence penalties",
        "temperature",
        "min_p",
        "top_k",
        "top_p",
    ),
    "hf": (
        "logit_bias",
        "repetition_penalty",
        "frequency and presence penalties",
        "bad_words",
        "min_tokens",
        "structured_outputs",
        "allowed_token_ids",
        "logits_processors",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
    ),
}
"""What applies before what; greedy sampling leaves out the temperature and what follows it."""

Output = Sequence[int]
Apply = Callable[[Logits, Output], Logits]


@dataclass(frozen=True)
class _Step:
    """A processor, and for which numbers of tokens generated so far it does anything.

    ``lowers``: it raises no logit, and looks at each by itself.
    """

    apply: Apply
    lowers: bool
    first: int = 0
    end: int | None = None

    def due(self, count: int) -> bool:
        return self.first <= count and (self.end is None or count < self.end)


class Chain:
    """All that one request asks to be done to its logits, up to the temperature."""

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        eos_token_ids: Collection[int],
        prompt_token_ids: Sequence[int],
        bad_words: Words = (),
        grammar: GrammarState | None = None,
        llm_processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        self._params = params
        self._prompt = prompt_token_ids
        self._vocab_size = vocab_size
        # A word with a token that the model does not have is never completed.
        self._bad_words = tuple(word for word in bad_words if max(word) < vocab_size)
        eos = {token for token in eos_token_ids if token < vocab_size}
        self._eos = _ids(eos)
        self._barred = _ids(eos.union(params.stop_ids))
        self._grammar = grammar
        self._functions = CustomProcessors(
            prompt_token_ids, params.logits_processors or (), llm_processors
        )
        self._tally = Tally()
        self._check_room()
        made = {
            "structured_outputs": self._structured,
            "allowed_token_ids": self._allowed,
            "bad_words": self._without_bad_words,
            "min_tokens": self._without_ends,
            "logit_bias": self._biased,
            "logits_processors": self._custom,
            "repetition_penalty": self._repetition,
            "frequency and presence penalties": self._penalties,
        }
        steps = (made[name]() for name in ORDERS[params.processor_order] if name in made)
        self._steps = [step for step in steps if step is not None]

    def __call__(self, logits: Logits, output: Output) -> Logits:
        """The logits to choose from; the row itself when there is nothing to do.

        Otherwise most often a row that the thread's next call writes to.
        """
        due = self.due(len(output))
        if not due:
            return logits
        adjusted = self._copy_of(logits)
        for step in due:
            adjusted = step.apply(adjusted, output)
        return adjusted

    def due(self, count: int) -> list[_Step]:
        """What there is to do after so many tokens."""
        return [step for step in self._steps if step.due(count)]

    def of_some(self, ids: Ids, logits: Logits, output: Output) -> Logits | None:
        """The same for some tokens, ``ids`` [n], whose logits [n] alone are known.

        None where a processor may raise the logits of others. The array itself when there is
        nothing to do.
        """
        due = self.due(len(output))
        if not due:
            return logits
        if not all(step.lowers for step in due):
            return None
        row = scratch.floats("adjusted", self._vocab_size)
        row.fill(-np.inf)
        row[ids] = logits
        for step in due:
            row = step.apply(row, output)
        return row[ids]

    def _copy_of(self, logits: Logits) -> Logits:
        if self._functions:  # they may keep what they are given
            return logits.copy()
        copy = scratch.floats("adjusted", logits.size)
        np.copyto(copy, logits)
        return copy

    def _structured(self) -> _Step | None:
        grammar = self._grammar
        if grammar is None:
            return None
        # Where EOS ends nothing it would be a token without a text. Something else is possible:
        # an output that is complete has ended.
        barred = self._eos if self._params.ignore_eos else self._eos[:0]

        def apply(logits: Logits, output: Output) -> None:
            np.putmask(logits, ~grammar.mask(), -np.inf)
            processors.mask_tokens(logits, barred)

        return _Step(_in_place(apply), lowers=True)

    def _allowed(self) -> _Step | None:
        if self._params.allowed_token_ids is None:
            return None
        ids = _ids(self._params.allowed_token_ids)
        return _Step(_in_place(lambda logits, _: processors.keep_only(logits, ids)), lowers=True)

    def _without_bad_words(self) -> _Step | None:
        if not self._bad_words:
            return None
        # Words begin in the output, as in vLLM; in Hugging Face's order also in the prompt.
        longest = max(map(len, self._bad_words)) - 1
        in_prompt = self._params.processor_order == "hf" and longest > 0
        before = list(self._prompt[-longest:]) if in_prompt else []

        def apply(logits: Logits, output: Output) -> None:
            banned = completing(self._bad_words, [*before, *output])
            processors.mask_tokens(logits, _ids(banned))

        return _Step(_in_place(apply), lowers=True)

    def _without_ends(self) -> _Step | None:
        barred = self._barred
        if not self._params.min_tokens or not barred.size:
            return None
        apply = _in_place(lambda logits, _: processors.mask_tokens(logits, barred))
        return _Step(apply, lowers=True, end=self._params.min_tokens)

    def _biased(self) -> _Step | None:
        bias = self._params.logit_bias
        if not bias:
            return None
        ids, values = _ids(bias), np.array(list(bias.values()), np.float32)
        apply = _in_place(lambda logits, _: processors.add_bias(logits, ids, values))
        return _Step(apply, lowers=bool((values <= 0).all()))

    def _custom(self) -> _Step | None:
        return _Step(self._functions, lowers=False) if self._functions else None

    def _repetition(self) -> _Step | None:
        penalty = self._params.repetition_penalty
        if penalty == 1.0:
            return None
        prompt = np.unique(_ids(self._prompt))

        def apply(logits: Logits, output: Output) -> None:
            seen = np.concatenate((prompt, self._tally.of(output)[0]))
            processors.repetition_penalty(logits, seen, penalty)

        return _Step(_in_place(apply), lowers=penalty > 1.0)

    def _penalties(self) -> _Step | None:
        frequency, presence = self._params.frequency_penalty, self._params.presence_penalty
        if not frequency and not presence:
            return None

        def apply(logits: Logits, output: Output) -> None:
            processors.output_penalties(logits, *self._tally.of(output), frequency, presence)

        return _Step(_in_place(apply), lowers=min(frequency, presence) >= 0.0, first=1)

    def _check_room(self) -> None:
        """Some token must be left that does not end the output before ``min_tokens``."""
        if not self._params.min_tokens:
            return
        allowed = self._params.allowed_token_ids
        possible = range(self._vocab_size) if allowed is None else allowed
        if set(self._barred.tolist()).issuperset(possible):
            raise SamplingParamsError(
                f"min_tokens={self._params.min_tokens} leaves no token to choose: stop_token_ids "
                f"and the model's EOS cover the whole vocabulary, or all allowed_token_ids"
            )


def _in_place(apply: Callable[[Logits, Output], None]) -> Apply:
    def applied(logits: Logits, output: Output) -> Logits:
        apply(logits, output)
        return logits

    return applied


def _ids(tokens: Collection[int]) -> Ids:
    return np.fromiter(tokens, np.int64, len(tokens))
