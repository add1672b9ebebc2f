"""Checkpoint folders: every weight as transformers has it, and damage named."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source import Source, open_source
from enginewright.runtime.errors import SourceError, UnsupportedModelError

Make = Callable[..., Path]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 288}


def llama(**changes: Any) -> transformers.LlamaConfig:
    sizes = SIZES | {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2}
    return transformers.LlamaConfig(**(sizes | {"max_position_embeddings": 64} | changes))


def opened(folder: Path) -> Source:
    return open_source(SourceSpec(path=folder))


@pytest.fixture(scope="module")
def tiny(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), llama())


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A folder of one's own to damage."""
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def assert_equals_transformers(folder: Path) -> None:
    """Every parameter of the module has a weight, equal to the bit, whole and by rows."""
    source = opened(folder)
    reference = source.reference_model()
    assert not reference.training
    for name, parameter in reference.named_parameters(remove_duplicate=False):
        weight = source.weight(name)
        expected = parameter.detach().numpy()
        assert parameter.dtype == torch.float32
        assert weight.shape == expected.shape
        np.testing.assert_array_equal(weight.numpy(), expected)
        np.testing.assert_array_equal(weight.rows(1, 3), expected[1:3])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_read_exactly_in_every_dtype(
    make_checkpoint: Make, tmp_path: Path, dtype: str
) -> None:
    assert_equals_transformers(make_checkpoint(tmp_path, llama(), dtype=dtype))


def test_a_sharded_checkpoint(make_checkpoint: Make, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, llama(), max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert_equals_transformers(folder)
    stored = sum(path.stat().st_size for path in folder.glob("model-*.safetensors"))
    assert opened(folder).stored_bytes == stored


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=288),
        transformers.GPTNeoXConfig(
            hidden_size=32, intermediate_size=48, max_position_embeddings=64, **SIZES
        ),
        transformers.OPTConfig(
            hidden_size=32, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32, **SIZES
        ),
        transformers.Gemma2Config(
            hidden_size=32, intermediate_size=48, num_key_value_heads=2, head_dim=8, **SIZES
        ),
        llama(tie_word_embeddings=True),
    ],
    ids=lambda config: config.model_type,
)
def test_names_ties_and_prefixes_of_other_families(
    make_checkpoint: Make, tmp_path: Path, config: Any
) -> None:
    assert_equals_transformers(make_checkpoint(tmp_path, config))


def test_gpt2_without_its_prefix(make_checkpoint: Make, tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=288)
    folder = make_checkpoint(tmp_path, config)
    rename(folder, lambda name: name.removeprefix("transformer."))
    assert "h.0.ln_1.weight" in opened(folder).weights
    assert_equals_transformers(folder)


def test_only_the_head_of_two_tied_weights_is_stored(make_checkpoint: Make, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, llama(tie_word_embeddings=True))
    rename(folder, lambda name: name.replace("model.embed_tokens", "lm_head"))
    assert_equals_transformers(folder)


def test_weights_stored_apart_are_not_tied_whatever_the_config_says(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, llama(tie_word_embeddings=False))
    edit_config(folder, tie_word_embeddings=True)
    assert opened(folder).config["tie_word_embeddings"] is False
    assert_equals_transformers(folder)


def test_an_untied_head_that_is_missing_is_named(copy: Path) -> None:
    rename(copy, lambda name: None if name == "lm_head.weight" else name)
    source = opened(copy)
    with pytest.raises(SourceError, match=r"lm_head\.weight of LlamaForCausalLM is missing") as e:
        source.weight("lm_head.weight")
    assert str(copy) in str(e.value)


def test_weights_stay_on_disk(tiny: Path) -> None:
    stored = opened(tiny).weights["lm_head.weight"]
    whole = stored.numpy()
    base: Any = whole
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert type(base).__name__ == "mmap"
    assert not whole.flags.writeable


def test_config_and_facts(tiny: Path) -> None:
    source = opened(tiny)
    assert source.architecture == "LlamaForCausalLM"
    assert (source.kind, source.reference, source.revision) == ("checkpoint", tiny.name, None)
    assert source.positions == 64
    assert source.config["hidden_size"] == 32
    assert type(source.model_config()) is transformers.LlamaConfig


def test_the_architecture_follows_from_the_model_type_where_it_is_not_named(copy: Path) -> None:
    edit_config(copy, architectures=None)
    assert opened(copy).architecture == "LlamaForCausalLM"


def test_an_unknown_architecture_is_refused_by_name(copy: Path) -> None:
    edit_config(copy, architectures=["NovelForCausalLM"], model_type="novel")
    with pytest.raises(UnsupportedModelError, match=r"'novel'.*NovelForCausalLM"):
        opened(copy).model_config()
    edit_config(copy, architectures=None)
    with pytest.raises(UnsupportedModelError, match="names no architecture"):
        _ = opened(copy).architecture


def test_an_illegal_config_is_an_error(copy: Path) -> None:
    edit_config(copy, rms_norm_eps="small")
    with pytest.raises(SourceError, match="not a legal llama config"):
        opened(copy).model_config()


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no config\.json"):
        opened(tmp_path)
    with pytest.raises(SourceError, match="no such folder"):
        opened(tmp_path / "nowhere")


def test_a_file_of_an_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(SourceError, match="neither a checkpoint folder nor a GGUF file"):
        opened(tmp_path / "model.pth")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_config(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(SourceError, match=r"config\.json"):
        opened(copy)


def test_missing_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="no weights"):
        opened(copy)


def test_a_pickle_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"pickle.*save_pretrained"):
        opened(copy)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_named(copy: Path, kept: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SourceError, match=r"model\.safetensors: truncated"):
        opened(copy)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"dtype": "F8_E4M3"}, "stored as F8_E4M3"),
        ({"shape": [3]}, "spans"),
        ({"shape": "x"}, "damaged header"),
        ({"data_offsets": [0]}, "damaged header"),
        ({"data_offsets": [-4, 0]}, "damaged header"),
    ],
)
def test_a_header_that_contradicts_itself(copy: Path, change: dict[str, Any], problem: str) -> None:
    path = copy / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["model.norm.weight"] |= change
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises((SourceError, UnsupportedModelError), match=problem):
        opened(copy)


def test_garbage_is_no_safetensors_file(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"\x80abc" + b"\0" * 64)
    with pytest.raises(SourceError, match="damaged header"):
        opened(copy)


def test_a_missing_shard_is_named(make_checkpoint: Make, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, llama(), max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(SourceError, match=f"the shard {shard.name}.*is missing"):
        opened(folder)


def test_an_index_that_names_a_tensor_no_shard_holds(make_checkpoint: Make, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, llama(), max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = first
    path.write_text(json.dumps(index))
    with pytest.raises(SourceError, match=rf"model\.layers\.9\.mlp\.up_proj\.weight in {first}"):
        opened(folder)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd"])
def test_an_index_that_leaves_the_folder(copy: Path, shard: str) -> None:
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    index = {"weight_map": {"lm_head.weight": shard}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="not a file of the folder"):
        opened(copy)


def test_an_index_without_a_map(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(SourceError, match="holds no weight_map"):
        opened(copy)


@pytest.mark.parametrize(
    "settings", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {}, "int4"]
)
def test_other_quantizations_are_refused_by_name(copy: Path, settings: Any) -> None:
    edit_config(copy, quantization_config=settings)
    named = settings.get("quant_method") if isinstance(settings, dict) else settings
    with pytest.raises(UnsupportedModelError, match=f"'{named}'; built are gptq, awq"):
        opened(copy)


def test_the_digest_follows_every_file_that_matters_and_nothing_else(copy: Path) -> None:
    before = opened(copy).digest
    assert before.startswith("sha256:")
    (copy / "README.md").write_text("a note")
    assert opened(copy).digest == before
    changed = {before}
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        path = copy / name
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        digest = opened(copy).digest if name != "model.safetensors" else flipped(copy, content)
        changed.add(digest)
        path.write_bytes(content)
    assert len(changed) == 5
    assert opened(copy).digest == before


def flipped(folder: Path, content: bytes) -> str:
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    (folder / "model.safetensors").write_bytes(damaged)
    return opened(folder).digest


def rename(folder: Path, new_name: Callable[[str], str | None]) -> None:
    path = folder / "model.safetensors"
    renamed = {new_name(name): tensor.clone() for name, tensor in load_file(path).items()}
    save_file({name: t for name, t in renamed.items() if name is not None}, path, {"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
