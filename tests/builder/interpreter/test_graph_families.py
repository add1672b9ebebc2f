"""Graphs as they are given to TensorRT, run without it: families beside Hugging Face in fp32.

The weights are stored in T, so what is measured is what the graph rounds on its way. Ids may differ
only where the reference's own margin between its two best candidates is within that.
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

from enginewright.runtime import LLM, SamplingParams

PROMPT_LENGTHS = (3, 41, 17, 1, 29)
NEW_TOKENS = 16
TOLERANCE = {"fp16": 5e-3, "bf16": 4e-2}
"""Relative to the largest logit."""

_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 311,
    "max_position_embeddings": 256,
}
_GEMMA = {**_COMMON, "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 311, "n_positions": 256}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _COMMON),
    "qwen2": ("Qwen2Config", _COMMON),
    "qwen3": ("Qwen3Config", {**_COMMON, "head_dim": 16}),
    "phi3": ("Phi3Config", _COMMON),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt_neox": (
        "GPTNeoXConfig",
        {**_COMMON, "num_key_value_heads": 4, "rope_parameters": _PARTIAL},
    ),
    "opt": ("OPTConfig", {**_COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "olmo2": ("Olmo2Config", _COMMON),
    "smollm3": ("SmolLM3Config", {**_COMMON, "no_rope_layer_interval": 2}),
    "mistral": ("MistralConfig", {**_COMMON, "sliding_window": 24}),
    "gemma2": ("Gemma2Config", _GEMMA),
    "gemma3": (
        "Gemma3TextConfig",
        {**_GEMMA, "num_hidden_layers": 3, "sliding_window_pattern": 3},
    ),
}
CASES = [  # native attention has no windows and no caps: the first nine
    *((name, "fp16", "native") for name in list(CONFIGS)[:9]),
    *((name, "fp16", "plugin") for name in ("llama", "gpt_neox", *list(CONFIGS)[8:])),
    ("llama", "bf16", "native"),
    ("gemma2", "bf16", "plugin"),
]
_QUICK = {"llama", "gpt_neox", "gemma2"}
"""Between them: grouped heads, rotary of a part, LayerNorm, windows, soft caps."""


@dataclass
class Family:
    """A checkpoint's lowered graph behind an LLM, and Hugging Face's model of it."""

    name: str
    llm: LLM
    oracle: Any
    tolerance: float


@pytest.fixture(scope="module")
def make_family(
    make_checkpoint: Callable[..., Path], tiny_artifact: Path, make_engine, tmp_path_factory
):
    """``make_family(name, precision, attention) -> Family``; traces each checkpoint once."""
    folder = tmp_path_factory.mktemp("families")

    def make(name: str, precision: str, attention: str) -> Family:
        config_class, fields = CONFIGS[name]
        dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
        checkpoint = folder / f"{name}-{dtype}"
        if not checkpoint.exists():
            config = getattr(transformers, config_class)(**fields)
            make_checkpoint(checkpoint, config, dtype=dtype)
        engine = make_engine(checkpoint, precision, attention)
        oracle = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        llm = LLM.over(tiny_artifact, engine)
        return Family(name, llm, oracle.eval(), TOLERANCE[precision])

    return make


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, marks=[] if case[0] in _QUICK else pytest.mark.slow) for case in CASES
    ],
    ids="-".join,
)
def family(request, make_family) -> Iterator[Family]:
    made = make_family(*request.param)
    with made.llm:
        yield made


@pytest.fixture
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, 311, length).tolist() for length in PROMPT_LENGTHS]


@torch.inference_mode()
def _logits(oracle: Any, ids: list[int]) -> np.ndarray:
    return oracle(input_ids=torch.tensor([ids])).logits[0].numpy()


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_ragged_prefill(family, prompts):
    batch = zip(family.llm.batch_logits(prompts), prompts, strict=True)
    error = max(_error(ours, _logits(family.oracle, ids)) for ours, ids in batch)
    print(f"{family.name}: ragged prefill {error:.1e}")
    assert error <= family.tolerance


@pytest.mark.parametrize("chunk", [1, 7])
def test_decode_and_chunked_prefill(family, prompts, chunk):
    ids = max(prompts, key=len)
    error = _error(family.llm.logits(ids, chunk=chunk), _logits(family.oracle, ids))
    print(f"{family.name}: {chunk} tokens a step {error:.1e}")
    assert error <= family.tolerance


def test_greedy_ids_of_a_ragged_batch(family, prompts):
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = family.llm.generate(prompts, params)
    equal = 0
    for output, prompt in zip(outputs, prompts, strict=True):
        ids = list(output.outputs[0].token_ids)
        logits = _logits(family.oracle, prompt + ids)[len(prompt) - 1 : -1]
        wanted = logits.argmax(axis=1)
        differing = np.flatnonzero(wanted != ids)
        equal += not differing.size
        if differing.size:
            at = differing[0]
            margin = (logits[at][wanted[at]] - logits[at][ids[at]]) / np.abs(logits[at]).max()
            assert margin < 2 * family.tolerance, f"position {at}: another id by {margin:.1e}"
    print(f"{family.name}: {equal} of {len(prompts)} rows equal to the end")
    assert equal >= len(prompts) - 2
