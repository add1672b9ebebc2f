"""What enters an artifact of tokenizer, template and generation config, and EOS ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer

from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source import Source, open_source
from enginewright.builder.source.gguf_file import GgufFile
from enginewright.builder.source.gguf_tokenizer import gguf_tokenizer
from enginewright.runtime.errors import SourceError, UnsupportedModelError

Make = Callable[..., Path]
TEXTS = (
    "Call me Ishmael. It was the best of times!",
    "  two  spaces\n\tand 12345 numbers, naïve 漢字 🙂",
    "",
    "<s> a </s> special <pad>",
)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
LLAMA_KEYS = {
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "block_count": 1,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


@pytest.fixture(scope="module")
def tiny(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.LlamaConfig(
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=64,
        **SIZES,
    )
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), config)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def opened(folder: Path) -> Source:
    return open_source(SourceSpec.at(folder))


def written(source: Source, folder: Path) -> Path:
    target = folder / "artifact"
    target.mkdir()
    names = source.write_tokenizer(target)
    assert sorted(names) == sorted(path.name for path in target.iterdir())
    return target


def ids_of(artifact: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


def expected_ids(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(data | changes))


def test_the_source_s_own_files_are_carried_over(copy: Path, tmp_path: Path) -> None:
    (copy / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20}')
    artifact = written(opened(copy), tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (artifact / name).read_bytes() == (copy / name).read_bytes()
    config = json.loads((artifact / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")
    assert "unk_token" not in config
    generation = json.loads((artifact / "generation_config.json").read_text())
    assert generation == {"temperature": 0.6, "top_k": 20}


def test_what_is_written_loads_in_transformers_and_gives_the_same_ids(
    tiny: Path, tmp_path: Path
) -> None:
    source = opened(tiny)
    artifact = written(source, tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tiny)
    again = transformers.AutoTokenizer.from_pretrained(artifact)
    assert ids_of(artifact) == expected_ids(reference) == expected_ids(again)
    assert again.eos_token_id == reference.eos_token_id == 1
    assert again.chat_template == reference.chat_template == source.tokenizer.chat_template


def test_writing_twice_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        first, second = (
            {path.name: path.read_bytes() for path in written(opened(tiny), where).iterdir()}
            for where in (folder, _subfolder(folder))
        )
        assert first == second


def _subfolder(folder: Path) -> Path:
    inner = folder / "again"
    inner.mkdir()
    return inner


def test_a_special_token_that_only_the_config_knows_is_added(copy: Path, tmp_path: Path) -> None:
    edit(copy, "tokenizer_config.json", extra_special_tokens=["<|call|>"])
    reference = transformers.AutoTokenizer.from_pretrained(copy)
    expected = reference("a<|call|>b")["input_ids"]
    assert len(expected) == 3
    artifact = written(opened(copy), tmp_path)
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    assert tokenizer.encode("a<|call|>b").ids == expected
    assert ids_of(artifact) == expected_ids(reference)


def test_truncation_and_padding_saved_by_accident_are_left_out(copy: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    expected = [tokenizer.encode(text).ids for text in TEXTS]
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(copy / "tokenizer.json"))
    assert ids_of(written(opened(copy), tmp_path)) == expected


def test_a_tokenizer_without_tokenizer_json_is_converted(copy: Path, tmp_path: Path) -> None:
    model = json.loads((copy / "tokenizer.json").read_text())["model"]
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.json").write_text(json.dumps(model["vocab"]))
    (copy / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    (copy / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", **specials})
    )
    expected = expected_ids(transformers.AutoTokenizer.from_pretrained(copy))
    source = opened(copy)
    assert ids_of(written(source, tmp_path)) == expected
    assert source.tokenizer.eos_token_id == 1


def test_of_several_templates_the_default_is_taken(copy: Path, tmp_path: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    templates = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    edit(copy, "tokenizer_config.json", chat_template=templates)
    assert (written(opened(copy), tmp_path) / "chat_template.jinja").read_text() == "D"


def test_without_template_and_generation_config_none_is_written(copy: Path, tmp_path: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    (copy / "generation_config.json").unlink(missing_ok=True)
    names = {path.name for path in written(opened(copy), tmp_path).iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}


def test_eos_is_the_union_of_config_generation_config_and_tokenizer(copy: Path) -> None:
    edit(copy, "config.json", eos_token_id=7)
    (copy / "generation_config.json").write_text('{"eos_token_id": [9, 7, 5]}')
    source = opened(copy)
    assert source.eos_token_ids == (1, 5, 7, 9)
    assert source.bos_token_id == 0
    (copy / "generation_config.json").unlink()
    edit(copy, "config.json", eos_token_id=None)
    edit(copy, "tokenizer_config.json", eos_token=None)
    assert opened(copy).eos_token_ids == ()


def test_a_missing_tokenizer_is_an_error(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"no tokenizer; one of tokenizer\.json"):
        opened(copy)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"model": {"type": "Sphinx"}}'])
def test_a_damaged_tokenizer_is_an_error(copy: Path, tmp_path: Path, text: str) -> None:
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(SourceError, match="the tokenizer cannot be loaded"):
        opened(copy).write_tokenizer(tmp_path)


def test_a_damaged_generation_config_is_an_error(copy: Path) -> None:
    (copy / "generation_config.json").write_text("{")
    with pytest.raises(SourceError, match=r"generation_config\.json"):
        opened(copy)


def test_code_shipped_with_a_tokenizer_is_not_run(copy: Path, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    (copy / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: ...\n")
    edit(
        copy,
        "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": [None, "evil.Evil"]},
    )
    with pytest.raises(SourceError, match="the tokenizer cannot be loaded"):
        opened(copy).write_tokenizer(tmp_path)
    assert not proof.exists()


def as_gguf(make_gguf: Make, tiny: Path, folder: Path, **general: Any) -> Source:
    return opened(make_gguf(tiny, folder / "a.gguf", "llama", LLAMA_KEYS, general=general))


def test_a_gguf_file_gives_the_ids_of_the_tokenizer_it_was_made_from(
    make_gguf: Make, tiny: Path, tmp_path: Path
) -> None:
    source = as_gguf(make_gguf, tiny, tmp_path)
    artifact = written(source, tmp_path)
    assert ids_of(artifact) == expected_ids(transformers.AutoTokenizer.from_pretrained(tiny))
    template = (tiny / "chat_template.jinja").read_text()
    assert (artifact / "chat_template.jinja").read_text() == template
    assert (source.eos_token_ids, source.bos_token_id) == ((1,), 0)
    config = json.loads((artifact / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")


def test_a_gguf_file_that_asks_for_bos_gets_it(make_gguf: Make, tiny: Path, tmp_path: Path) -> None:
    source = as_gguf(make_gguf, tiny, tmp_path, **{"tokenizer.ggml.add_bos_token": True})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    ids = ids_of(written(source, tmp_path))
    assert ids[0][0] == 0
    assert ids == expected_ids(theirs)


def test_stop_tokens_and_sampling_of_a_gguf_file(
    make_gguf: Make, tiny: Path, tmp_path: Path
) -> None:
    source = as_gguf(
        make_gguf,
        tiny,
        tmp_path,
        **{
            "tokenizer.ggml.eot_token_id": 9,
            "tokenizer.ggml.eom_token_id": 1,
            "general.sampling.temp": 0.5,
            "general.sampling.top_k": 7,
        },
    )
    assert source.eos_token_ids == (1, 9)
    expected = {"bos_token_id": 0, "eos_token_id": [1, 9], "do_sample": True}
    assert source.generation_config == {**expected, "temperature": 0.5, "top_k": 7}
    artifact = written(source, tmp_path)
    found = json.loads((artifact / "generation_config.json").read_text())
    assert found == source.generation_config


def vocabulary_gguf(path: Path, tokens: list[str], model: str, **more: Any) -> Path:
    """A GGUF file that holds a vocabulary and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    for name, value in more.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tensor("unused", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata_of(path: Path, model: str, **more: Any) -> GgufFile:
    general = {"general.architecture": "llama", "tokenizer.ggml.model": model}
    return GgufFile(path, general | {"tokenizer.ggml.tokens": 1} | more, {})


def test_single_digits_of_smollm_keep_the_spaces_before_them_together(tmp_path: Path) -> None:
    tokens = ["<|endoftext|>", "Ġ", "ĠĠ", "1", "2", "a"]
    path = vocabulary_gguf(
        tmp_path / "v.gguf",
        tokens,
        "gpt2",
        tokenizer_pre="smollm",
        token_merges=["Ġ Ġ"],
        token_types=[3, 1, 1, 1, 1, 1],
        bos_token_id=0,
        eos_token_id=0,
    )
    loaded = gguf_tokenizer(metadata_of(path, "gpt2", **{"tokenizer.ggml.pre": "smollm"})).loaded
    assert loaded("a  12")["input_ids"] == [5, 2, 3, 4]


def test_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "▁a", "ab", "▁ab"]
    path = vocabulary_gguf(
        tmp_path / "v.gguf",
        pieces,
        "llama",
        token_scores=[0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -2.0, -3.0],
        token_types=[2, 3, 3, *[6] * 256, *[1] * 6],
        bos_token_id=1,
        eos_token_id=2,
        unk_token_id=0,
    )
    loaded = gguf_tokenizer(metadata_of(path, "llama")).loaded
    ids = loaded("ab aé")["input_ids"]
    assert ids[0] == 1
    assert [pieces[i] for i in ids[1:]] == ["▁ab", "▁a", "<0xC3>", "<0xA9>"]
    assert loaded.decode(ids, skip_special_tokens=True) == "ab aé"


def test_a_gguf_file_without_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no vocabulary"):
        gguf_tokenizer(GgufFile(tmp_path, {"general.architecture": "llama"}, {}))
    with pytest.raises(UnsupportedModelError, match="'bert'"):
        gguf_tokenizer(metadata_of(tmp_path, "bert"))


def test_a_vocabulary_that_cannot_be_converted_is_an_error(tmp_path: Path) -> None:
    path = vocabulary_gguf(tmp_path / "v.gguf", ["a"], "gpt2", token_merges=["x y"])
    with pytest.raises(SourceError, match="the tokenizer cannot be read"):
        _ = gguf_tokenizer(metadata_of(path, "gpt2")).loaded
