"""Streaming text: joined, it is the whole decoding; stop strings cut it exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from os.path import commonprefix
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from enginewright.runtime.text.detokenizer import IncrementalDetokenizer, StopScanner
from enginewright.runtime.text.tokenizer import Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and then it doesn't.",
    "Zażółć gęślą jaźń; l'été à Noël, straße",
    "def f(x):\n    return x ** 2  # spaces    and\ttabs\n\n",
    "日本語のテキスト 漢字 👩‍👩‍👧 🙂🙂 naïve",
] * 3
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_DECODER = [
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
]


def grown(alphabet: Sequence[str], words: Sequence[str]) -> models.BPE:
    """A vocabulary of letters and of the beginnings of words, each grown by one letter."""
    vocabulary = list(alphabet)
    merges = []
    for word in words:
        for end in range(1, len(word)):
            if word[: end + 1] not in vocabulary:
                vocabulary.append(word[: end + 1])
                merges.append((word[:end], word[end]))
    ids = {token: at for at, token in enumerate(vocabulary)}
    return models.BPE(ids, merges, byte_fallback=BYTES[0] in ids, unk_token=None)


def byte_level() -> Backend:
    """Some tokens end inside a character, and one begins there."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [split.pre_tokenize_str(word)[0][0] for word in (" the", " dog", "日本", "🙂🙂", "  ")]
    words.append(split.pre_tokenize_str("字漢")[0][0][1:])
    backend = Backend(grown(sorted(pre_tokenizers.ByteLevel.alphabet()), words))
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    return backend


def byte_level_stripped() -> Backend:
    """Bytes, and then a rule for the start of the text."""
    backend = byte_level()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return backend


def byte_fallback(decoder: Any, prefix: str) -> Backend:
    """Like SentencePiece's: ▁ for spaces, and bytes for what the vocabulary lacks."""
    letters = sorted(set("▁abcdeghijklnoprstuvwxyz.,日本é" + REPLACEMENT))
    words = ["▁the", "▁dog", "▁▁▁", "日本", "▁日", "s.", "é▁"]
    backend = Backend(grown([*BYTES, *letters], words))
    steps = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(prefix)] * bool(prefix) + steps)
    backend.decoder = decoder
    return backend


def word_piece() -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def end_of_word() -> Backend:
    backend = Backend(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def without_decoder() -> Backend:
    backend = Backend(models.WordLevel({f"w{at}": at for at in range(50)}, "w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


BUILDERS = {
    "byte level": byte_level,
    "byte level, stripped": byte_level_stripped,
    "llama": lambda: byte_fallback(decoders.Sequence(LLAMA_DECODER), "▁"),
    "gemma": lambda: byte_fallback(decoders.Sequence(LLAMA_DECODER[:3]), ""),
    "strip two": lambda: byte_fallback(
        decoders.Sequence([*LLAMA_DECODER[:3], decoders.Strip(" ", 2, 0)]), "▁▁"
    ),
    "metaspace": lambda: byte_fallback(
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]), "▁"
    ),
    "metaspace alone": lambda: byte_fallback(decoders.Metaspace(), "▁"),
    "word piece": word_piece,
    "end of word": end_of_word,
    "no decoder": without_decoder,
}


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    backend = BUILDERS[kind]()
    backend.add_special_tokens(["<s>", "<|end|>"])
    added = ("<think>", "é", "漢 x")
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return Tokenizer(backend)


KINDS = st.sampled_from(list(BUILDERS))
IDS = st.lists(st.integers(0, 330) | st.integers(256, 330), max_size=24)
ALPHABET = "ab é漢🙂\n" + REPLACEMENT


def streamed(tokenizer: Tokenizer, ids: Sequence[int], **options: Any) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, **options)
    parts = [detokenizer.push(token) for token in ids]
    parts.append(detokenizer.finish())
    assert detokenizer.text == "".join(parts)
    return parts


def continuation(tokenizer: Tokenizer, prompt: list[int], ids: list[int], skip: bool) -> str:
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    text = tokenizer.decode(prompt + ids, skip_special_tokens=skip)
    return text[len(commonprefix([before, text])) :]  # noqa: RUF071


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=150)
@given(ids=IDS, skip=st.booleans())
def test_stream_of_any_ids_is_their_decoding(kind: str, ids: list[int], skip: bool) -> None:
    tokenizer = tokenizer_of(kind)
    parts = streamed(tokenizer, ids, skip_special_tokens=skip)
    assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=150)
@given(prompt=IDS, ids=IDS, skip=st.booleans())
def test_stream_goes_on_from_the_prompt(
    kind: str, prompt: list[int], ids: list[int], skip: bool
) -> None:
    tokenizer = tokenizer_of(kind)
    parts = streamed(tokenizer, ids, skip_special_tokens=skip, prompt_token_ids=prompt)
    assert "".join(parts) == continuation(tokenizer, prompt, ids, skip)


@pytest.mark.parametrize("kind", BUILDERS)
def test_added_tokens_between_words(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    added = list(tokenizer.backend.get_added_tokens_decoder())
    words = tokenizer.encode("the dog", add_special_tokens=False)
    ids = [id_ for token in added for id_ in (token, *words, token, token)]
    for skip in (True, False):
        parts = streamed(tokenizer, ids, skip_special_tokens=skip)
        assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["llama", "strip two", "metaspace"])
@settings(max_examples=100)
@given(words=st.lists(st.sampled_from(["▁", "▁▁", "▁the", "d", "<0x20>", "<s>"]), max_size=8))
def test_spaces_at_the_start(kind: str, words: list[str]) -> None:
    tokenizer = tokenizer_of(kind)
    ids = [id_ for word in words if (id_ := tokenizer.token_to_id(word)) is not None]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=100)
@given(text=st.text(max_size=30) | st.text(ALPHABET, max_size=30))
@example(text="🙂 naïve 漢字")
def test_stream_of_text(kind: str, text: str) -> None:
    """And a character never shows before it is whole."""
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = streamed(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids)
    if REPLACEMENT not in tokenizer.decode(ids):
        assert not any(REPLACEMENT in part for part in parts)


@pytest.mark.parametrize("kind", ["byte level", "byte level, stripped", "gemma"])
def test_half_a_character_shows_at_the_end_only(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    smile = byte_ids(tokenizer, "\N{ANATOMICAL HEART}".encode())
    parts = streamed(tokenizer, smile[:-1])
    assert parts[:-1] == [""] * (len(smile) - 1)
    assert parts[-1] == tokenizer.decode(smile[:-1])
    assert set(parts[-1]) == {REPLACEMENT}
    assert "".join(streamed(tokenizer, smile)) == "\N{ANATOMICAL HEART}"


def byte_ids(tokenizer: Tokenizer, text: bytes) -> list[int]:
    """One token a byte."""
    if "ByteLevel" in tokenizer.decoder_kinds:
        shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = [byte for byte in range(256) if byte not in shown]
        names = [chr(byte) if byte in shown else chr(0x100 + hidden.index(byte)) for byte in text]
    else:
        names = [f"<0x{byte:02X}>" for byte in text]
    ids = [tokenizer.token_to_id(name) for name in names]
    assert None not in ids
    return [token for token in ids if token is not None]


@pytest.mark.parametrize("kind", ["byte level", "byte level, stripped", "gemma"])
@pytest.mark.parametrize("begun", [1, 2, 3])
def test_a_character_that_the_prompt_began(kind: str, begun: int) -> None:
    tokenizer = tokenizer_of(kind)
    word = tokenizer.encode("dog", add_special_tokens=False)
    heart = byte_ids(tokenizer, "\N{ANATOMICAL HEART}".encode())
    prompt = [*word, *heart[:begun]]
    shown = "".join(streamed(tokenizer, heart[begun:], prompt_token_ids=prompt))
    assert shown == "\N{ANATOMICAL HEART}"


def test_a_prompt_that_ends_in_bytes_of_no_character() -> None:
    """ED A1 would be half a surrogate: two U+FFFD of the prompt, which are not told again."""
    tokenizer = tokenizer_of("byte level")
    surrogate, letter = byte_ids(tokenizer, b"\xed\xa1"), byte_ids(tokenizer, b"a")
    assert tokenizer.decode(surrogate) == 2 * REPLACEMENT
    assert "".join(streamed(tokenizer, [], prompt_token_ids=surrogate)) == ""
    assert "".join(streamed(tokenizer, letter, prompt_token_ids=surrogate)) == "a"


def test_leading_space_is_kept_after_a_prompt_and_stripped_without() -> None:
    tokenizer = tokenizer_of("llama")
    the = tokenizer.encode("the", add_special_tokens=False)
    assert "".join(streamed(tokenizer, the)) == "the"
    assert "".join(streamed(tokenizer, the, prompt_token_ids=the)) == " the"


@pytest.mark.parametrize("kind", ["llama", "metaspace"])
def test_work_does_not_grow_with_the_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each decoding is of a short window, also for spaces, special ids and bytes without end."""
    tokenizer = tokenizer_of(kind)
    seen: list[int] = []
    decode = tokenizer.decode

    def counting(ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        seen.append(len(ids))
        return decode(ids, skip_special_tokens)

    monkeypatch.setattr(tokenizer, "decode", counting)
    space, special = tokenizer.token_to_id("▁"), tokenizer.token_to_id("<s>")
    assert space is not None
    assert special is not None
    literal = tokenizer.token_to_id(REPLACEMENT)
    assert literal is not None
    word = tokenizer.encode("dog", add_special_tokens=False)
    for run in (
        [space],
        [special],
        [literal],
        [*word],
        [*byte_ids(tokenizer, "🙂".encode()), *word],
    ):
        seen.clear()
        tokens = (run * 400)[:400]
        streamed(tokenizer, tokens)
        assert sum(seen) < 10 * len(tokens)
    seen.clear()
    endless = (byte_ids(tokenizer, b"\xf0\x9f\x99\x82") * 400)[:400]
    streamed(tokenizer, endless, stop=("never",))
    assert sum(seen) < 64 * 64 + 10 * len(endless)


# ---- stop strings


def cut(text: str, stops: Sequence[str], include: bool) -> tuple[str, str | None]:
    """Character by character: the reference for what a stop string does."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)
PIECES = st.lists(st.text("abc", max_size=5), max_size=10)


@given(PIECES, STOPS, st.booleans())
def test_scanner_cuts_as_if_by_character(
    pieces: list[str], stops: list[str], include: bool
) -> None:
    scanner = StopScanner(tuple(stops), include)
    shown = ""
    for piece in pieces:
        shown += scanner.scan(piece)
        if scanner.found is not None:
            break
    else:
        shown += scanner.flush()
    text, found = cut("".join(pieces), stops, include)
    assert (shown, scanner.found) == (text, found)


@given(PIECES, STOPS)
def test_scanner_holds_back_what_may_be_a_stop_and_no_more(
    pieces: list[str], stops: list[str]
) -> None:
    scanner = StopScanner(tuple(stops), False)
    text = shown = ""
    for piece in pieces:
        text += piece
        shown += scanner.scan(piece)
        if scanner.found is not None:
            return
        held = text[len(shown) :]
        assert text == shown + held
        starts = {stop[:length] for stop in stops for length in range(1, len(stop))}
        assert held == max((start for start in starts if text.endswith(start)), key=len, default="")


@settings(max_examples=200)
@given(KINDS, st.text(ALPHABET, max_size=20), st.data(), st.booleans())
def test_stop_strings_of_a_stream(kind: str, text: str, data: st.DataObject, include: bool) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids)
    stops = tuple(data.draw(st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)))
    if len(whole) > 2:
        at = data.draw(st.integers(0, len(whole) - 2))
        stops += (whole[at : at + data.draw(st.integers(1, 4))],)
    detokenizer = IncrementalDetokenizer(tokenizer, stops, include)
    for token in ids:
        detokenizer.push(token)
        if detokenizer.stop_reason is not None:
            break
    detokenizer.finish()
    assert (detokenizer.text, detokenizer.stop_reason) == cut(whole, stops, include)


def test_a_stop_string_ends_at_its_own_token() -> None:
    """Also where it is a byte whose run could go on: nothing follows the last token."""
    for kind in ("byte level", "llama"):
        tokenizer = tokenizer_of(kind)
        line = byte_ids(tokenizer, b"\n")
        ids = tokenizer.encode("dog", add_special_tokens=False) + line
        detokenizer = IncrementalDetokenizer(tokenizer, ("\n",))
        text = "".join(detokenizer.push(token) for token in ids)
        assert (text, detokenizer.stop_reason) == ("dog", "\n")


def test_half_a_character_is_no_stop_string() -> None:
    tokenizer = tokenizer_of("llama")
    detokenizer = IncrementalDetokenizer(tokenizer, (REPLACEMENT,))
    for token in byte_ids(tokenizer, "🙂".encode()):
        detokenizer.push(token)
    assert detokenizer.finish() == "🙂"
    assert detokenizer.stop_reason is None


def test_a_stop_string_that_is_held_back_when_the_text_ends() -> None:
    tokenizer = tokenizer_of("byte level")
    half = byte_ids(tokenizer, "é".encode())[:1]
    detokenizer = IncrementalDetokenizer(tokenizer, (REPLACEMENT,))
    assert detokenizer.push(half[0]) == ""
    assert detokenizer.finish() == ""
    assert detokenizer.stop_reason == REPLACEMENT


def test_stop_strings_do_not_count_before_min_tokens() -> None:
    tokenizer = tokenizer_of("byte level")
    ids = byte_ids(tokenizer, b"xaxbxa")
    detokenizer = IncrementalDetokenizer(tokenizer, ("xa",), min_tokens=2)
    text = "".join(detokenizer.push(token) for token in ids)
    assert (text, detokenizer.stop_reason) == ("xaxb", "xa")
    begun = IncrementalDetokenizer(tokenizer, ("aa",), min_tokens=2)
    text = "".join(begun.push(token) for token in byte_ids(tokenizer, b"aaa"))
    assert (text, begun.stop_reason) == ("a", "aa")


def test_exempt_text_is_held_back_only_for_a_stop_that_it_begins() -> None:
    scanner = StopScanner(("ab", "xyzab", "abyy"), False)
    assert scanner.scan("ab", exempt=True) == ""
    assert scanner.scan("z") == "abz"
    other = StopScanner(("ab", "xyzab"), False)
    assert other.scan("ab", exempt=True) == "ab"
    third = StopScanner(("ab", "xabyy"), False)
    assert third.scan("xab", exempt=True) == ""
    assert third.scan("z") == "xabz"
    assert third.found is None


def test_nothing_may_follow_the_end() -> None:
    tokenizer = tokenizer_of("byte level")
    (a,) = byte_ids(tokenizer, b"a")
    stopped = IncrementalDetokenizer(tokenizer, ("a",))
    stopped.push(a)
    assert stopped.finish() == ""
    with pytest.raises(AssertionError):
        stopped.push(a)
    ended = IncrementalDetokenizer(tokenizer)
    ended.finish()
    with pytest.raises(AssertionError):
        ended.push(a)
