"""Grammars: which tokens may come next, for outputs that must have a form. By llguidance.

V vocabulary, W its tokens in bytes of eight, those of the model and the tokenizer.

| tensor | shape | dtype | meaning                                                        |
|--------|-------|-------|----------------------------------------------------------------|
| mask   | [V]   | bool  | which tokens may come next                                     |
| bits   | [W]   | uint8 | the same, eight tokens a byte, the lowest id in the lowest bit |
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Self

import numpy as np

from enginewright.runtime.errors import RequestError
from enginewright.runtime.sampling.grammar_source import grammar_source, refused
from enginewright.runtime.sampling.grammar_vocabulary import (
    Bits,
    Mask,
    Vocabulary,
    require_llguidance,
)
from enginewright.runtime.sampling.processors import Ids
from enginewright.runtime.sampling.structured import StructuredOutputsParams
from enginewright.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

CACHED = 64


class GrammarCompiler:
    """Compiles what outputs must be like, for one tokenizer and one model's vocabulary.

    Constructing one costs nothing; the first ``compile`` reads the tokenizer (some 0.3 s for
    50,000 tokens). Compiled grammars are kept, the last 64 of them.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Collection[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._compiled = lru_cache(CACHED)(self._compile)

    def compile(self, params: StructuredOutputsParams) -> Grammar:
        """SamplingParamsError when the constraint is wrong, matches nothing, or is too large."""
        require_llguidance()
        source = grammar_source(params, self._special_id)
        try:
            if params.whitespace_pattern is not None:
                self._check_spaces(params.whitespace_pattern)
            return self._compiled(source)
        except _RefusedError as error:
            raise refused(params.constraint, params.value, str(error)) from None

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)

    def _special_id(self, text: str) -> int | None:
        token = self._tokenizer.token_to_id(text)
        return token if token in self._tokenizer.special_ids else None

    def _check_spaces(self, pattern: str) -> None:
        try:
            self._compiled(
                grammar_source(StructuredOutputsParams(regex=pattern), lambda text: None)
            )
        except _RefusedError as error:
            raise refused("whitespace_pattern", pattern, str(error)) from None

    def _compile(self, source: str) -> Grammar:
        state = GrammarState(self._vocabulary.matcher(source), self._vocabulary)
        error = state.error
        if error is not None:
            raise _RefusedError(error)
        return Grammar(state)


class Grammar:
    """A compiled grammar, shared by all outputs that must follow it."""

    def __init__(self, first: GrammarState) -> None:
        self._first = first

    def start(self) -> GrammarState:
        """The state of an output without tokens."""
        return self._first.copy()


class GrammarState:
    """How far one output has come in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._bits: Bits | None = None
        self._ended = False

    @property
    def error(self) -> str | None:
        """Why there is no next mask: the grammar is wrong, leads nowhere, or became too complex."""
        if self._bits is None:
            bits = self._vocabulary.known(self._matcher.compute_bitmask())
            if self._matcher.is_error():
                return _reason(self._matcher.get_error())
            self._bits = bits
        return None

    def mask(self) -> Mask:
        """Which tokens [V] may come next; EOS where the output may end. Not to be written to."""
        return self._vocabulary.mask(self._next_bits())

    def allowed(self) -> Ids:
        """The same as ascending ids."""
        return np.flatnonzero(self.mask())

    def advance(self, token_id: int) -> None:
        """Go on after a token; RequestError if the mask does not have it."""
        if not self._vocabulary.has(self._next_bits(), token_id):
            raise RequestError(
                f"structured_outputs do not allow the token {token_id} that was chosen: "
                f"logits_processors must leave impossible tokens at -inf"
            )
        self._bits = None
        self._matcher.consume_token(token_id)
        self._ended = token_id in self._vocabulary.eos

    def advanced(self, token_id: int) -> Self:
        """A state after the token; this one stays as it is."""
        state = self.copy()
        state.advance(token_id)
        return state

    def possible(self, token_ids: Sequence[int]) -> int:
        """How many of the tokens, one after the other, the grammar would take."""
        return int(self._matcher.validate_tokens(list(token_ids)))

    @property
    def finished(self) -> bool:
        """Whether the output is complete and nothing but EOS can follow."""
        if self._ended:
            return True
        return self.error is None and not self._vocabulary.continues(self._next_bits())

    def copy(self) -> Self:
        """A state that goes its own way."""
        state = type(self)(self._matcher.deep_copy(), self._vocabulary)
        state._bits, state._ended = self._bits, self._ended
        return state

    def _next_bits(self) -> Bits:
        error = self.error
        if error is not None:
            raise RequestError(f"structured_outputs cannot be followed further: {error}")
        assert self._bits is not None
        return self._bits


class _RefusedError(Exception):
    """The library's reason for refusing a grammar, before it is known whose grammar it is."""


def _reason(error: str) -> str:
    """The library's message without its state and its picture of the place, on one line."""
    text = " ".join(re.split(r"\n<|\n *\d+ \| ", error)[0].split())
    if text == "NoExtensionBias":
        return "no text of this model's tokens matches it"
    return text[:500]
