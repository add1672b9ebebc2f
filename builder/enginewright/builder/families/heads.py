"""Attention heads: how many may share keys and values, and which sizes a target can run."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedConfig

from enginewright.plugins.attention.cuda.config import KernelConfig, UnsupportedAttentionError
from enginewright.runtime.errors import SourceError, UnsupportedModelError

HEAD_MULTIPLES: Mapping[str, int] = {"cpu": 8, "cuda": 8}
"""Of what a head's size must be a multiple: ONNX Runtime's GroupQueryAttention refuses others."""


def check_heads(target: str, config: PreTrainedConfig, attention: str = "native") -> None:
    """Raise SourceError for groups that are not whole, UnsupportedModelError for a head's size
    that the target's attention cannot run, or that the plugin's kernels cannot.
    """
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if heads % kv_heads:
        raise SourceError(
            f"config: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    multiple = HEAD_MULTIPLES.get(target, 1)
    if head_dim % multiple:
        raise UnsupportedModelError(
            f"config: heads of {head_dim} dimensions (head_dim, or hidden_size over "
            f"num_attention_heads) cannot be built: the attention of target {target} takes "
            f"multiples of {multiple}"
        )
    if attention == "plugin":
        try:
            KernelConfig("float16", heads, kv_heads, head_dim, block_size=16)
        except UnsupportedAttentionError as error:
            raise UnsupportedModelError(
                f"attention: plugin: {error}; attention: native may take it"
            ) from error
