"""What a checkpoint's small files may not say: refused by name, before anything is made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig

from enginewright.builder.families.heads import check_heads
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import make_recipe
from enginewright.runtime.errors import BuildError, SourceError, UnsupportedModelError

SIZES = {"num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 288}


@pytest.fixture(scope="module")
def tiny(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, max_position_embeddings=64, num_key_value_heads=2
    ).to_dict() | {**SIZES, "head_dim": 8}
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), LlamaConfig.from_dict(config))


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    data = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(data | changes), "utf-8")


def refused(folder: Path, kind: type[BuildError], stage: str = "source") -> str:
    """What a build of the folder says when it fails in the stage; it leaves nothing behind."""
    recipe = make_recipe(
        {
            "name": "tiny",
            "source": {"path": str(folder)},
            "target": "cpu",
            "precision": "fp32",
            "limits": {"max_context": 32, "max_batch": 4},
        }
    )
    told: list[str] = []
    output = folder.parent / "output"
    with pytest.raises(BuildError) as caught:
        build(recipe, output, progress=told.append)
    assert type(caught.value) is kind
    assert told[-1] == f"{stage} ..."
    assert list(output.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", "2"),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("head_dim", 0),
        ("hidden_size", -32),
        ("vocab_size", 0),
        ("intermediate_size", 1.5),
        ("max_position_embeddings", True),
    ],
)
def test_a_size_that_is_none_is_named(copy: Path, name: str, value: Any) -> None:
    edit(copy, "config.json", **{name: value})
    said = refused(copy, SourceError)
    assert said.startswith(f"{copy}: config: {name} {value!r} is not legal: it must be an integer")


def test_a_size_is_named_as_its_family_spells_it(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": 288}
    folder = make_checkpoint(tmp_path / "gpt2", GPT2Config(**sizes))
    edit(folder, "config.json", n_layer=0)
    assert "config: n_layer 0 is not legal" in refused(folder, SourceError)


def test_heads_in_no_whole_groups_are_named(copy: Path) -> None:
    edit(copy, "config.json", num_key_value_heads=3)
    said = refused(copy, SourceError)
    assert said == "config: num_attention_heads 4 is no multiple of num_key_value_heads 3"


@pytest.mark.parametrize("head_dim", [4, 12, 20])
def test_heads_that_the_target_cannot_run_are_named(copy: Path, head_dim: int) -> None:
    edit(copy, "config.json", head_dim=head_dim)
    said = refused(copy, UnsupportedModelError)
    assert said.startswith(f"config: heads of {head_dim} dimensions")
    assert "target cpu takes multiples of 8" in said


def test_heads_of_a_size_that_follows_from_others_are_named(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    sizes = {"n_embd": 48, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": 288}
    folder = make_checkpoint(tmp_path / "gpt2", GPT2Config(**sizes))
    assert "heads of 12 dimensions" in refused(folder, UnsupportedModelError)


@pytest.mark.parametrize("value", ["LlamaForCausalLM", [3], {"a": 1}, 5])
def test_architectures_is_a_list_of_names(copy: Path, value: Any) -> None:
    edit(copy, "config.json", architectures=value)
    said = refused(copy, SourceError)
    assert f"config: architectures {value!r} is not legal: it must be a list" in said


def test_a_model_type_that_is_no_text_is_named(copy: Path) -> None:
    edit(copy, "config.json", model_type=["llama"])
    assert "model_type \"['llama']\" is unknown" in refused(copy, UnsupportedModelError)


@pytest.mark.parametrize(
    ("rope", "kind", "said"),
    [
        ({"rope_type": "default", "rope_theta": 0}, SourceError, "rope_theta 0 is not legal"),
        ({"rope_type": "default", "rope_theta": "x"}, SourceError, "rope_theta 'x' is not legal"),
        ({"rope_type": ["x"]}, UnsupportedModelError, "rope_type ['x'] cannot be built"),
    ],
)
def test_rotary_parameters_that_are_none_are_named(
    copy: Path, rope: dict[str, Any], kind: type[BuildError], said: str
) -> None:
    edit(copy, "config.json", rope_parameters=rope)
    assert said in refused(copy, kind)


def test_what_transformers_cannot_make_is_said(copy: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": "two"}
    edit(copy, "config.json", rope_parameters=rope)
    said = refused(copy, SourceError, stage="plan")
    assert said.startswith("transformers cannot make a llama model from the config: TypeError")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["</s>", ["</s>"], True, [1, False], 1.0, {}, [[1]]])
def test_an_end_token_that_is_no_id_is_named(copy: Path, file: str, value: Any) -> None:
    edit(copy, file, eos_token_id=value)
    said = refused(copy, SourceError)
    place = "config" if file == "config.json" else "generation config"
    assert f"{copy}: {place}: eos_token_id: {value!r} is not legal" in said


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(("value", "wrong"), [(288, 288), ([1, 99_999], 99_999), (-1, -1)])
def test_an_end_token_outside_the_vocabulary_is_named(
    copy: Path, file: str, value: Any, wrong: int
) -> None:
    edit(copy, file, eos_token_id=value)
    said = refused(copy, SourceError)
    assert f"eos_token_id: {wrong} is outside the vocabulary of 288 tokens" in said
    assert "an id from 0 to 287" in said


def test_an_end_token_that_only_the_tokenizer_has_is_named(copy: Path) -> None:
    edit(copy, "tokenizer_config.json", eos_token="<end>")
    said = refused(copy, SourceError)
    assert f"{copy}: tokenizer: eos_token: 288 is outside the vocabulary" in said


def test_a_padding_token_outside_the_vocabulary_is_named(copy: Path) -> None:
    edit(copy, "config.json", pad_token_id=99_999)
    assert "pad_token_id 99999 is outside the vocabulary" in refused(copy, SourceError)


def test_a_generation_config_that_transformers_refuses_is_named(copy: Path) -> None:
    edit(copy, "generation_config.json", max_new_tokens=0)
    said = refused(copy, SourceError)
    assert said.startswith(f"{copy}: the generation config is not legal: `max_new_tokens`")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}\n{{ m.content \n{% endfor %}", "(line 3): expected token"),
        ("{% for m in messages %}", "(line 1): Unexpected end of template"),
        ("a\n{% frobnicate %}", "(line 2): Encountered unknown tag 'frobnicate'"),
        ("{{ messages | frobnicate }}", "(line 1): No filter named 'frobnicate'"),
        ("x" * 300_000, "it must be of at most"),
    ],
)
def test_a_template_that_does_not_compile_is_named_with_its_line(
    copy: Path, template: str, said: str
) -> None:
    (copy / "chat_template.jinja").write_text(template)
    message = refused(copy, SourceError)
    assert message.startswith(f"{copy}: the chat template cannot be compiled")
    assert said in message


@pytest.mark.parametrize(
    ("heads", "attention", "refused"),
    [(8, "plugin", True), (8, "native", False), (1, "plugin", False)],
)
def test_heads_that_the_plugin_lacks_are_refused_before_anything_is_traced(
    heads: int, attention: str, refused: bool
) -> None:
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=heads, num_key_value_heads=heads, vocab_size=288
    )
    if not refused:
        check_heads("tensorrt_rtx", config, attention)
        return
    with pytest.raises(
        UnsupportedModelError, match=r"head size 16: .* 32 to 256; attention: native"
    ):
        check_heads("tensorrt_rtx", config, attention)
