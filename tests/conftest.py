"""Fixtures for all tests: tiny random checkpoints with a tokenizer trained on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MakeCheckpoint = Callable[..., Path]

_TEXT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
    "age of foolishness. Call me Ishmael. Some years ago, never mind how long precisely, having "
    "little money in my purse, I thought I would sail about and see the watery part of the world."
)
_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
_LOGIT_DEVIATION = 4.0
_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no fixture of a session, touches the cache of the user who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    """``make_checkpoint(folder, config, seed=0, **save) -> folder``: a Hugging Face checkpoint.

    ``config``: one of transformers', or what differs from a tiny Llama's.
    Random weights large enough that every part of the model matters, and a head scaled so that
    logits are well spread. The tokenizer is a byte-level BPE: <s> 0, </s> 1, <pad> 2, then the 256
    bytes, then merges up to the config's vocab_size, which is at least 259. ``save`` goes to
    save_pretrained (max_shard_size, for example); ``dtype`` sets that of the stored weights.
    """
    return _make_checkpoint


def _make_checkpoint(
    folder: Path,
    config: PreTrainedConfig | Mapping[str, Any],
    seed: int = 0,
    *,
    dtype: str = "float32",
    **save: Any,
) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    if isinstance(config, Mapping):
        config = LlamaConfig(**(_LLAMA | config))
    folder.mkdir(parents=True, exist_ok=True)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.1 * noise)
        ids = torch.randint(3, config.vocab_size, (2, 16))
        head = model.get_output_embeddings().weight
        head.mul_(_LOGIT_DEVIATION / model(input_ids=ids).logits.std())
    model.to(getattr(torch, dtype)).save_pretrained(folder, **save)
    _write_tokenizer(folder, config.vocab_size)
    return folder


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "</s>", "<pad>"]
    if vocab_size < 256 + len(specials):
        raise ValueError(f"vocab_size {vocab_size} does not hold 256 bytes and {specials}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_artifact(
    make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny random Llama, built by the pipeline for the CPU in fp32. Tests must not change it.

    It has the plain plan alone, as where no compiler is.
    """
    from enginewright.builder.pipeline import build
    from enginewright.builder.recipe import make_recipe

    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = make_checkpoint(folder / "checkpoint", {"max_position_embeddings": 600})
    recipe = make_recipe(
        {
            "name": "tiny",
            "source": {"path": str(checkpoint)},
            "target": "cpu",
            "precision": "fp32",
            "limits": {"max_context": 600, "max_batch": 24},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("enginewright.builder.targets.operators.compile_library", lambda: None)
        return build(recipe, folder / "artifacts", progress=lambda line: None)
