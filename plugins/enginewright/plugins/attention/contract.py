"""The ABI of ``enginewright::CachedAttention``, version 1.

| input            | shape                       | dtype      | meaning                          |
|------------------|-----------------------------|------------|----------------------------------|
| q                | [B, S, heads * D]           | T          | queries, before rotary with cos  |
| k, v             | [B, S, kv_heads * D]        | T          | keys and values of new tokens    |
| k_cache, v_cache | [blocks, kv_heads, size, D] | T/int8/fp8 | the pool, written in place       |
| block_table      | [B, n]                      | int32      | the blocks of each row, in order |
| past_lengths     | [B]                         | int32      | tokens already in the cache      |
| new_lengths      | [B]                         | int32      | how many of S are real           |
| cos, sin         | [positions, rotary_dim / 2] | float32    | optional: rotary inside the op   |
| sinks            | [heads]                     | float32    | optional: attention sinks        |
| k_scale, v_scale | [kv_heads]                  | float32    | optional: of a quantized cache   |

| output           | shape                       | dtype      | meaning                          |
|------------------|-----------------------------|------------|----------------------------------|
| out              | [B, S, heads * D]           | T          | undefined beyond new_lengths     |
| k_cache_out, ... | as the inputs               |            | alias of the inputs              |

Row b attends over its past_lengths[b] cached tokens and, causally, over its new ones.
On the CPU blocks of k_cache are [kv_heads, D, size], and q may hold q, k and v side by side: see
cpu/step.h. There a node may have the attribute ``bfloat16``: if it is 1, what is multiplied may be
rounded to that type, where the processor has tiles of it and the cache is float16. A changed
meaning is a new ``abi_version``.
"""

from __future__ import annotations

from dataclasses import dataclass

DOMAIN = "enginewright"
OP_TYPE = "CachedAttention"
ABI_VERSION = 1
INPUTS = (
    "q",
    "k",
    "v",
    "k_cache",
    "v_cache",
    "block_table",
    "past_lengths",
    "new_lengths",
    "cos",
    "sin",
    "sinks",
    "k_scale",
    "v_scale",
)
BFLOAT16 = "bfloat16"
OUTPUTS = ("out", "k_cache_out", "v_cache_out")


@dataclass(frozen=True)
class AttentionAttributes:
    """Attributes of one node. window and softcap: 0 is none; rotary_dim: 0 without cos."""

    num_heads: int
    kv_heads: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    rotary_dim: int = 0
    interleaved: int = 0
    abi_version: int = ABI_VERSION

    def __post_init__(self) -> None:
        assert self.num_heads % self.kv_heads == 0, "heads come in whole groups"
        assert self.window >= 0
        assert self.softcap >= 0
        assert self.abi_version == ABI_VERSION
