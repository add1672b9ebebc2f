"""The tokenizer wrapper: any text in, no truncation, damaged files named."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from enginewright.runtime.errors import ArtifactError, PromptError
from enginewright.runtime.text.tokenizer import Tokenizer

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


def byte_level() -> Backend:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([AddedToken("<think>", special=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return backend


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level())


@given(ANY_TEXT)
def test_any_text_survives(text: str) -> None:
    tokenizer = Tokenizer(byte_level())
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == "<s>" + joined


def test_surrogates(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\ud800b\ud83d\ude00", add_special_tokens=False)
    assert tokenizer.decode(ids) == "a\N{REPLACEMENT CHARACTER}b\N{GRINNING FACE}"


def test_special_tokens(tokenizer: Tokenizer) -> None:
    start, end, think = (tokenizer.token_to_id(t) for t in ("<s>", "</s>", "<think>"))
    assert tokenizer.special_ids == {start, end}
    assert tokenizer.encode("")[0] == start
    assert tokenizer.encode("", add_special_tokens=False) == []
    assert tokenizer.encode("</s><think>", add_special_tokens=False) == [end, think]
    assert tokenizer.decode([start, think, end]) == "<think>"
    assert tokenizer.decode([start, think, end], skip_special_tokens=False) == "<s><think></s>"


def test_ids_without_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 259
    assert tokenizer.token_to_id("nothing like it") is None
    assert tokenizer.surface(9999) is None
    assert tokenizer.decode([9999, 10**6]) == ""


def test_the_files_truncation_and_padding_are_not_used(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert len(tokenizer.encode("a" * 20)) == 21


def test_decoder_kinds(tokenizer: Tokenizer) -> None:
    assert tokenizer.decoder_kinds == ("ByteLevel",)
    backend = byte_level()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert Tokenizer(backend).decoder_kinds == ("ByteFallback", "Fuse")
    bare = json.loads(backend.to_str()) | {"decoder": None}
    assert Tokenizer(Backend.from_str(json.dumps(bare))).decoder_kinds == ()


@pytest.mark.parametrize("prompt", [None, 5, b"bytes", ["a"]])
def test_what_is_not_text_is_refused(tokenizer: Tokenizer, prompt: object) -> None:
    with pytest.raises(PromptError, match="must be text"):
        tokenizer.encode(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'{"model": {}}', b"\xff\xfe\x00"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone\.json"):
        Tokenizer.from_file(tmp_path / "gone.json")
    with pytest.raises(ArtifactError, match=tmp_path.name):
        Tokenizer.from_file(tmp_path)


def test_a_file_cut_anywhere_is_an_artifact_error(tmp_path: Path) -> None:
    text = byte_level().to_str()
    path = tmp_path / "tokenizer.json"
    for cut in random.Random(0).sample(range(len(text)), 40):
        path.write_text(text[:cut], encoding="utf-8")
        with pytest.raises(ArtifactError):
            Tokenizer.from_file(path)
