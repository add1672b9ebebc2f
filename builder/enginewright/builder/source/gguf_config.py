"""A GGUF file's metadata -> the keys of Hugging Face's config, one function an architecture.

Every key that changes a result is set, also where it equals the default of the config's class:
those defaults are one checkpoint's values. What the file asks for and cannot be said in a config
is refused by name.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from enginewright.builder.source.gguf_file import GgufFile
from enginewright.runtime.errors import SourceError, UnsupportedModelError

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_POSITIONS = 8192
_GEMMA2_27B_LAYERS = 46
_GEMMA3_27B_LAYERS = 62


def llama(file: GgufFile) -> dict[str, Any]:
    head_dim = _head_dim(file)
    rotated = file.get("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise UnsupportedModelError(
            f"{file.path}: llama that rotates {rotated} of {head_dim} dimensions of a head"
        )
    rope = _rope(file)
    if "rope_freqs.weight" in file.tensors:
        rope |= _llama3_scaling(file, float(rope["rope_theta"]), head_dim)
    biased = "blk.0.attn_q.bias" in file.tensors
    return _decoder(file) | {
        "head_dim": head_dim,
        "rope_parameters": rope,
        "attention_bias": biased,
        "mlp_bias": False,
    }


def qwen2(file: GgufFile) -> dict[str, Any]:
    return _decoder(file) | {"rope_parameters": _rope(file), "use_sliding_window": False}


def qwen3(file: GgufFile) -> dict[str, Any]:
    return _decoder(file) | {
        "head_dim": _head_dim(file),
        "rope_parameters": _rope(file),
        "attention_bias": False,
        "use_sliding_window": False,
    }


def gemma2(file: GgufFile) -> dict[str, Any]:
    return _decoder(file) | {
        "head_dim": _head_dim(file),
        "rope_parameters": _rope(file),
        "sliding_window": file.need("attention.sliding_window"),
        "attn_logit_softcapping": file.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.get("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _gemma_scalar(file, _GEMMA2_27B_LAYERS),
    }


def gemma3(file: GgufFile) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": file.get("rope.freq_base_swa", 10_000.0)}
    config = _decoder(file) | {
        "head_dim": _head_dim(file),
        "rope_parameters": {
            "full_attention": _rope(file, 1_000_000.0),
            "sliding_attention": local,
        },
        "sliding_window": file.need("attention.sliding_window"),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": file.get("final_logit_softcapping"),
        "query_pre_attn_scalar": _gemma_scalar(file, _GEMMA3_27B_LAYERS),
    }
    pattern = file.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        kinds = ["sliding_attention" if slides else "full_attention" for slides in pattern]
        return config | {"layer_types": kinds}
    return config | {"sliding_window_pattern": 6 if pattern is None else pattern}


def phi3(file: GgufFile) -> dict[str, Any]:
    if "rope_factors_long.weight" in file.tensors:
        raise UnsupportedModelError(f"{file.path}: phi3 with rope scaling 'longrope'")
    head_dim = _head_dim(file)
    rotated = file.get("rope.dimension_count", head_dim)
    positions = file.need("context_length")
    return _decoder(file) | {
        "rope_parameters": _rope(file) | {"partial_rotary_factor": rotated / head_dim},
        "sliding_window": file.get("attention.sliding_window") or None,
        "original_max_position_embeddings": positions,
    }


def gpt2(file: GgufFile) -> dict[str, Any]:
    return _tokens(file) | {
        "n_embd": file.need("embedding_length"),
        "n_layer": file.need("block_count"),
        "n_head": file.need("attention.head_count"),
        "n_inner": file.need("feed_forward_length"),
        "n_positions": file.need("context_length"),
        "layer_norm_epsilon": file.need("attention.layer_norm_epsilon"),
    }


def _decoder(file: GgufFile) -> dict[str, Any]:
    """What all decoders with RMS norms and rotary embeddings have."""
    heads = file.need("attention.head_count")
    kv_heads = file.get("attention.head_count_kv", heads)
    for name, count in (("head_count", heads), ("head_count_kv", kv_heads)):
        if not isinstance(count, int):
            raise UnsupportedModelError(f"{file.path}: attention.{name} differs between layers")
    return _tokens(file) | {
        "hidden_size": file.need("embedding_length"),
        "intermediate_size": file.need("feed_forward_length"),
        "num_hidden_layers": file.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": file.need("context_length"),
        "rms_norm_eps": file.need("attention.layer_norm_rms_epsilon"),
    }


def _tokens(file: GgufFile) -> dict[str, Any]:
    """Vocabulary, special tokens, and whether the head is the embedding."""
    if "token_embd.weight" not in file.tensors:
        raise SourceError(f"{file.path}: damaged: the tensor token_embd.weight is missing")
    vocab_size = file.tensors["token_embd.weight"].shape[0]
    config: dict[str, Any] = {
        "vocab_size": vocab_size,
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        # a padding id is an index of the embedding: one beyond it breaks transformers' module
        config[f"{key}_token_id"] = token if token is None or token < vocab_size else None
    return config


def _head_dim(file: GgufFile) -> int:
    heads = file.need("attention.head_count")
    found = file.get("attention.key_length", file.need("embedding_length") // heads)
    if file.get("attention.value_length", found) != found:
        raise UnsupportedModelError(f"{file.path}: heads of keys and values differ in size")
    return int(found)


def _rope(file: GgufFile, theta: float = 10_000.0) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": file.get("rope.freq_base", theta)}
    kind = file.get("rope.scaling.type", "none")
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": file.need("rope.scaling.factor")}
    elif kind != "none":
        raise UnsupportedModelError(
            f"{file.path}: {file.architecture} with rope scaling {kind!r}; "
            f"of GGUF files none and linear are built"
        )
    return rope


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling, which a GGUF holds as one divisor for each frequency.

    The parameters are read back from the divisors and must give the same divisors again.
    """
    stored = file.tensors["rope_freqs.weight"].data.view("<f4")
    factor = float(stored.max())
    low, high = _LLAMA3.values()
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((_LLAMA3_POSITIONS / waves - low) / (high - low), 0, 1)
    divisors = 1 / ((1 - smooth) / factor + smooth)
    if stored.shape != divisors.shape or not np.allclose(stored, divisors, rtol=1e-4):
        raise UnsupportedModelError(
            f"{file.path}: the divisors in rope_freqs.weight are not those of Llama 3's scaling"
        )
    positions = {"original_max_position_embeddings": _LLAMA3_POSITIONS}
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3, **positions}


def _gemma_scalar(file: GgufFile, largest: int) -> int:
    """Queries are divided by the root of this; only the largest size of a generation differs."""
    if file.need("block_count") == largest:
        return int(file.need("embedding_length") // file.need("attention.head_count"))
    return _head_dim(file)
