"""What torch export needs of CachedAttention: the custom op, its fake kernel, the translation.

The op here has no cos and sin: rotary is folded in later, in the graph. Its eager kernel is the
numpy reference, so the seam can be run inside the original module without any engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxscript
import torch
from torch import Tensor

from enginewright.plugins.attention.contract import (
    ABI_VERSION,
    DOMAIN,
    OP_TYPE,
    AttentionAttributes,
)
from enginewright.plugins.attention.reference import cached_attention as reference


@torch.library.custom_op(f"{DOMAIN}::cached_attention", mutates_args=())
def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    past_lengths: Tensor,
    new_lengths: Tensor,
    sinks: Tensor | None,
    num_heads: int,
    kv_heads: int,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over the cache; functional here: the caches come back as new tensors."""
    k_out, v_out = k_cache.clone(), v_cache.clone()
    out = reference(
        q.numpy(),
        k.numpy(),
        v.numpy(),
        k_out.numpy(),
        v_out.numpy(),
        block_table.numpy(),
        past_lengths.numpy(),
        new_lengths.numpy(),
        AttentionAttributes(num_heads, kv_heads, scale, window, softcap),
        sinks=None if sinks is None else sinks.numpy().astype(np.float64),
    )
    return torch.from_numpy(out), k_out, v_out


@cached_attention.register_fake
def _fake(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k_cache), torch.empty_like(v_cache)


def _schema() -> onnx.defs.OpSchema:
    parameter = onnx.defs.OpSchema.FormalParameter
    kind = onnx.defs.OpSchema.AttrType
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    tensors = [parameter(name, "T") for name in ("q", "k", "v", "k_cache", "v_cache")]
    lengths = [parameter(name, "I") for name in ("block_table", "past_lengths", "new_lengths")]
    extras = [
        parameter(name, "F", param_option=optional)
        for name in ("cos", "sin", "sinks", "k_scale", "v_scale")
    ]
    return onnx.defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        ABI_VERSION,
        inputs=[*tensors, *lengths, *extras],
        outputs=[parameter(name, "T") for name in ("out", "k_cache_out", "v_cache_out")],
        type_constraints=[
            ("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], ""),
            ("I", ["tensor(int32)"], ""),
            ("F", ["tensor(float)"], ""),
        ],
        attributes=[
            *(
                onnx.defs.OpSchema.Attribute(name, kind.INT)
                for name in ("num_heads", "kv_heads", "window", "abi_version")
            ),
            *(onnx.defs.OpSchema.Attribute(name, kind.FLOAT) for name in ("scale", "softcap")),
        ],
    )


def translations() -> dict[Any, Any]:
    """The entries for torch.onnx.export's ``custom_translation_table``."""
    node = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, ABI_VERSION), OP_TYPE, _schema())

    def translate(
        q: Any,
        k: Any,
        v: Any,
        k_cache: Any,
        v_cache: Any,
        block_table: Any,
        past_lengths: Any,
        new_lengths: Any,
        sinks: Any,
        num_heads: int,
        kv_heads: int,
        scale: float,
        window: int,
        softcap: float,
    ) -> Any:
        inputs = [q, k, v, k_cache, v_cache, block_table, past_lengths, new_lengths]
        if sinks is not None:
            inputs += [None, None, sinks]
        return node(
            *inputs,
            num_heads=num_heads,
            kv_heads=kv_heads,
            scale=scale,
            window=window,
            softcap=softcap,
            abi_version=ABI_VERSION,
        )

    return {torch.ops.enginewright.cached_attention.default: translate}
