"""A model's vocabulary as llguidance knows it.

V vocabulary, W its tokens in bytes of eight, those of the model and the tokenizer.

| tensor | shape | dtype | meaning                                                        |
|--------|-------|-------|----------------------------------------------------------------|
| mask   | [V]   | bool  | which tokens may come next                                     |
| bits   | [W]   | uint8 | the same, eight tokens a byte, the lowest id in the lowest bit |
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import MissingDependencyError, SamplingParamsError
from enginewright.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Mask = NDArray[np.bool_]
Bits = NDArray[np.uint8]
T = TypeVar("T")

# A quarter of what the library allows to one mask: with this the worst one takes some 0.15 s.
STEP_FUEL = 50_000
# For recursion over rules that refer to each other; see schema.py.
STACK_BYTES = 64 * 2**20

_STACK_LOCK = threading.Lock()


class Vocabulary:
    """The tokens that a mask may show: those that both the model and the tokenizer have.

    Some 0.3 s for 50,000 tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Collection[int]
    ) -> None:
        vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
        ids = frozenset(vocabulary.values())
        self._size = vocab_size
        self.eos = frozenset(
            token for token in ids.intersection(eos_token_ids) if token < vocab_size
        )
        # The library wants an EOS. Where there is none, those that are never text play it, unseen.
        ends = self.eos or tokenizer.special_ids
        self._tokenizer = _library_tokenizer(tokenizer, max(vocab_size, max(ids) + 1), ends)
        text = {token for token in ids - ends if token < vocab_size}
        self._text_bits = _packed(text, self._tokenizer.vocab_size)
        self._known_bits = _packed(text | self.eos, self._tokenizer.vocab_size)

    def matcher(self, source: str) -> LLMatcher:
        """What follows the grammar; it holds an error where the grammar is wrong."""
        return _with_deep_stack(lambda: self._matcher(source))

    def known(self, bits: bytes) -> Bits:
        """The library's mask without tokens that only the model or only the tokenizer has."""
        return np.frombuffer(bits, np.uint8, self._known_bits.size) & self._known_bits

    def mask(self, bits: Bits) -> Mask:
        return np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)

    def continues(self, bits: Bits) -> bool:
        """Whether there is any token but EOS."""
        return bool((bits & self._text_bits).any())

    def has(self, bits: Bits, token_id: int) -> bool:
        return bool(bits[token_id >> 3] >> (token_id & 7) & 1)

    def _matcher(self, source: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(step_lexer_fuel=STEP_FUEL, verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        matcher.compute_bitmask()  # once here; copies share what it found out
        return matcher


def _library_tokenizer(tokenizer: Tokenizer, size: int, ends: Collection[int]) -> LLTokenizer:
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(tokenizer.backend.to_str(), n_vocab=size, eos_token=sorted(ends) or None)
    except ValueError as error:
        raise SamplingParamsError(
            f"structured_outputs: llguidance cannot read this model's tokenizer ({error}); "
            f"leave them out"
        ) from error


def _packed(ids: Collection[int], size: int) -> Bits:
    flags = np.zeros(size, np.uint8)
    flags[list(ids)] = 1
    return np.packbits(flags, bitorder="little")


def require_llguidance() -> None:
    """MissingDependencyError names the command that installs the library."""
    try:
        import llguidance  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "llguidance":
            raise
        raise MissingDependencyError(
            "structured_outputs need llguidance: pip install 'enginewright[structured]'"
        ) from error


def _with_deep_stack(function: Callable[[], T]) -> T:
    """The function's result, from a thread with a stack of its own: main's may be small."""
    with _STACK_LOCK:
        before = threading.stack_size(STACK_BYTES)
        try:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(function).result()
        finally:
            threading.stack_size(before)
