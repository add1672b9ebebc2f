"""How each architecture of GGUF becomes one of Hugging Face: names of tensors, and the config.

What llama.cpp's converter did to the weights is undone: rows of Llama's q and k were reordered for
its rotary embedding, one was added to Gemma's norms, GPT-2's matrices were transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from enginewright.builder.source import gguf_config
from enginewright.builder.source.gguf_file import GgufFile

_GLOBAL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3 = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2_GLOBAL = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


@dataclass(frozen=True)
class GgufFamily:
    """One architecture of GGUF. Stems of names map to modules; ``biased`` stems have a bias too."""

    model_type: str
    architecture: str
    config: Callable[[GgufFile], dict[str, Any]]
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    top: Mapping[str, str] = field(default_factory=lambda: _GLOBAL)
    layers: str = "model.layers"
    biased: frozenset[str] = frozenset()
    reordered: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    norms_plus_one: bool = False

    def parameter(self, name: str, layers: int) -> str | None:
        """Hugging Face's name of a tensor; None if the architecture has no place for it."""
        stem, _, suffix = name.rpartition(".")
        prefix, table = "", self.top
        if stem.startswith("blk."):
            _, number, stem = stem.split(".", 2) if stem.count(".") >= 2 else ("", "", "")
            if not number.isdigit() or int(number) >= layers:
                return None
            prefix, table = f"{self.layers}.{int(number)}.", self.layer
        legal = ("weight", "bias") if stem in self.biased else ("weight",)
        return f"{prefix}{table[stem]}.{suffix}" if stem in table and suffix in legal else None


_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
GGUF_FAMILIES: Mapping[str, GgufFamily] = {
    "llama": GgufFamily(
        "llama",
        "LlamaForCausalLM",
        gguf_config.llama,
        biased=_QKV | {"attn_output"},
        reordered=frozenset({"attn_q", "attn_k"}),
    ),
    "qwen2": GgufFamily("qwen2", "Qwen2ForCausalLM", gguf_config.qwen2, biased=_QKV),
    "qwen3": GgufFamily("qwen3", "Qwen3ForCausalLM", gguf_config.qwen3, layer=_LAYER | _QK_NORM),
    "gemma2": GgufFamily(
        "gemma2",
        "Gemma2ForCausalLM",
        gguf_config.gemma2,
        layer=_LAYER | _SANDWICH,
        norms_plus_one=True,
    ),
    "gemma3": GgufFamily(
        "gemma3_text",
        "Gemma3ForCausalLM",
        gguf_config.gemma3,
        layer=_LAYER | _SANDWICH | _QK_NORM,
        norms_plus_one=True,
    ),
    "phi3": GgufFamily("phi3", "Phi3ForCausalLM", gguf_config.phi3, layer=_PHI3),
    "gpt2": GgufFamily(
        "gpt2",
        "GPT2LMHeadModel",
        gguf_config.gpt2,
        layer=_GPT2_LAYER,
        top=_GPT2_GLOBAL,
        layers="transformer.h",
        biased=frozenset({*_GPT2_LAYER, "output_norm"}),
        transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
    ),
}
"""general.architecture -> family. Mistral's older files say llama, and compute as Llama does."""
