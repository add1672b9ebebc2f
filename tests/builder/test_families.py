"""Every family, as a tiny random model: greedy ids and logits equal to Hugging Face's in fp32.

Ids may differ only after a position where the reference's own margin between its two best
candidates is below 1e-4; such positions are counted, printed, and at most one in a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from enginewright.builder.families import FAMILIES
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import make_recipe
from enginewright.runtime import LLM, SamplingParams

CONTEXT = 96
PROMPT_LENGTHS = (3, 41, 17, 1, 29)
NEW_TOKENS = 32
TIE = 1e-4
TOLERANCE = 1e-4

_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 311,
    "max_position_embeddings": 256,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GEMMA = {**_COMMON, "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_COMMON, "rope_parameters": _LLAMA3_ROPE}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_COMMON, "sliding_window": 24}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _COMMON),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_COMMON, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _GEMMA),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**_GEMMA, "num_hidden_layers": 3, "sliding_window_pattern": 3},
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _COMMON),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 311, "n_positions": 256},
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {
            **_COMMON,
            "num_key_value_heads": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
            },
        },
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {**_COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64},
    ),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _COMMON),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {
            **_COMMON,
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.7,
            "logits_scaling": 3.0,
        },
    ),
    "smollm3": (
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {**_COMMON, "num_hidden_layers": 4, "no_rope_layer_interval": 2},
    ),
}


@dataclass
class Family:
    """A checkpoint, the engine built from it, and Hugging Face's model of it."""

    name: str
    llm: LLM
    oracle: Any


def test_every_supported_architecture_has_a_case():
    assert {architecture for architecture, _, _ in CASES.values()} == set(FAMILIES)


@pytest.fixture(scope="module", params=CASES)
def family(request, make_checkpoint: Callable[..., Path], tmp_path_factory) -> Iterator[Family]:
    architecture, config_class, fields = CASES[request.param]
    config = getattr(transformers, config_class)(**fields)
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_checkpoint(folder / "checkpoint", config)
    recipe = make_recipe(
        {
            "name": request.param,
            "source": {"path": str(checkpoint)},
            "target": "cpu",
            "precision": "fp32",
            "limits": {"max_context": CONTEXT, "max_batch": 24},
        }
    )
    artifact = build(recipe, folder / "artifacts", progress=lambda line: None)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with LLM(artifact, threads=1) as llm:
        assert llm.manifest.source.architecture == architecture
        yield Family(request.param, llm, oracle.eval())


@pytest.fixture
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, 311, length).tolist() for length in PROMPT_LENGTHS]


@torch.inference_mode()
def _logits(oracle: Any, ids: list[int]) -> np.ndarray:
    return oracle(input_ids=torch.tensor([ids])).logits[0].numpy()


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of a logit, relative to the largest logit."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_prefill_logits_of_a_ragged_batch(family, prompts):
    batch = zip(family.llm.batch_logits(prompts), prompts, strict=True)
    error = max(_error(ours, _logits(family.oracle, ids)) for ours, ids in batch)
    print(f"{family.name}: ragged prefill {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("chunk", [1, 7])
def test_decode_and_chunked_prefill_logits(family, prompts, chunk):
    ids = max(prompts, key=len)
    error = _error(family.llm.logits(ids, chunk=chunk), _logits(family.oracle, ids))
    print(f"{family.name}: {chunk} tokens a step {error:.1e}")
    assert error <= TOLERANCE


def test_greedy_ids_of_a_ragged_batch(family, prompts):
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = family.llm.generate(prompts, params)
    ties = 0
    for output, prompt in zip(outputs, prompts, strict=True):
        ids = list(output.outputs[0].token_ids)
        assert len(ids) == NEW_TOKENS
        ties += _ties(family.oracle, prompt, ids)
    print(f"{family.name}: {ties} ties in {len(prompts) * NEW_TOKENS} positions")
    assert ties <= 0.01 * len(prompts) * NEW_TOKENS


def _ties(oracle: Any, prompt: list[int], ids: list[int]) -> int:
    """0 if the ids are the oracle's greedy ids; 1 if they differ first at a tie; else fail."""
    logits = _logits(oracle, prompt + ids)[len(prompt) - 1 : -1]
    wanted = logits.argmax(axis=1)
    differing = np.flatnonzero(wanted != ids)
    if not differing.size:
        return 0
    row = logits[differing[0]]
    margin = row[wanted[differing[0]]] - row[ids[differing[0]]]
    assert margin < TIE, f"position {differing[0]}: the oracle prefers another id by {margin}"
    return 1


def test_the_artifact_is_batch_invariant(family):
    assert family.llm.engine_info.batch_invariant
    measures = family.llm.manifest.conformance["plain"]["measures"]
    assert measures["prefill_invariant"] is True
    assert measures["decode_invariant"] is True
