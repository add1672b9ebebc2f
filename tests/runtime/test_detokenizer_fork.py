"""A forked text and its original go on without each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from enginewright.runtime.text.detokenizer import IncrementalDetokenizer
from enginewright.runtime.text.tokenizer import Tokenizer

TEXTS = ["n", "o", " ", "é", "日", "no", "on", " n"]


def byte_level() -> Tokenizer:
    """Its tokens are single bytes, so that most end inside a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({token: at for at, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def byte_fallback() -> Tokenizer:
    """Spaces are ▁, and bytes stand for what has no letter of its own."""
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "n", "o"]
    vocabulary = {token: at for at, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return Tokenizer(backend)


def fresh(tokenizer: Tokenizer) -> IncrementalDetokenizer:
    return IncrementalDetokenizer(tokenizer, ("onno", "日o"))


def grow(text: IncrementalDetokenizer, tokens: list[int]) -> None:
    for token in tokens:
        if text.stop_reason is None:
            text.push(token)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@given(data=st.data())
def test_forks(make: type[Tokenizer], data: st.DataObject) -> None:
    tokenizer = make()
    words = st.lists(st.sampled_from(TEXTS), max_size=6).map("".join)
    ids = words.map(lambda word: tokenizer.encode(word.replace(" ", "▁" * (make is byte_fallback))))
    stem, one, other = data.draw(ids), data.draw(ids), data.draw(ids)
    text = fresh(tokenizer)
    grow(text, stem)
    fork = text.fork()
    for at in range(max(len(one), len(other))):
        grow(text, one[at : at + 1])
        grow(fork, other[at : at + 1])
    for grown, tokens in ((text, one), (fork, other)):
        grown.finish()
        straight = fresh(tokenizer)
        grow(straight, stem + tokens)
        straight.finish()
        assert (grown.text, grown.stop_reason) == (straight.text, straight.stop_reason)
