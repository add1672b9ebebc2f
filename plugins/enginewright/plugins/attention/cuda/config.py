"""What one set of attention kernels is compiled for, and the tiles that it works in.

Torch- and triton-free: the builder, the runtime and the compiler of kernels share it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from enginewright.plugins.attention.contract import AttentionAttributes

IO_DTYPES = ("float16", "bfloat16", "float32")
CACHE_DTYPES = ("same", "int8", "fp8")
SHARED_BYTES = {
    "7.5": 64 << 10,
    "8.0": 163 << 10,
    "8.6": 99 << 10,
    "8.9": 99 << 10,
    "9.0": 227 << 10,
    "10.0": 227 << 10,
    "12.0": 99 << 10,
    "12.1": 99 << 10,
}
"""Shared memory that one thread block may take, for each capability that kernels are built for."""
CAPABILITIES = tuple(SHARED_BYTES)
KERNELS = ("cache_write", "decode", "reduce", "prefill")
MIN_HEAD_DIM, MAX_HEAD_DIM, HEAD_DIM_STEP = 32, 256, 16
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 8, 1024


class UnsupportedAttentionError(ValueError):
    """The kernels do not cover this attention; the message names the limit and what is legal."""


@dataclass(frozen=True)
class KernelConfig:
    """What is constant in the kernels of one node; nodes that agree in it share kernels.

    ``io``: dtype of q, k, v and out. ``cache``: "same" as io, or quantized with one scale for each
    kv head. scale, window and the value of the soft cap are arguments of a launch.
    """

    io: str
    num_heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    cache: str = "same"
    rotary_dim: int = 0
    interleaved: bool = False
    has_sinks: bool = False
    has_softcap: bool = False

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def from_attributes(
        cls,
        attributes: AttentionAttributes,
        *,
        io: str,
        head_dim: int,
        block_size: int,
        cache: str = "same",
        has_sinks: bool = False,
    ) -> KernelConfig:
        """The config of a node. Raises UnsupportedAttentionError."""
        return cls(
            io=io,
            num_heads=attributes.num_heads,
            kv_heads=attributes.kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            cache=cache,
            rotary_dim=attributes.rotary_dim,
            interleaved=bool(attributes.interleaved),
            has_sinks=has_sinks,
            has_softcap=attributes.softcap > 0,
        )

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> KernelConfig:
        """From what ``to_data`` gave. Raises UnsupportedAttentionError, TypeError."""
        return cls(**data)

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.num_heads // self.kv_heads

    @property
    def padded_dim(self) -> int:
        """The head size as a tile holds it."""
        return next_power_of_two(self.head_dim)

    @property
    def quantized(self) -> bool:
        return self.cache != "same"

    @property
    def key(self) -> str:
        """A short digest, the name of this config among files."""
        data = json.dumps(self.to_data(), sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Tile:
    """How one kernel is cut: rows of queries and tokens of the cache that a program holds."""

    rows: int
    tokens: int
    num_warps: int
    num_stages: int


def check(config: KernelConfig) -> None:
    """Raise UnsupportedAttentionError where the kernels do not cover ``config``."""
    c = config
    _one_of("io dtype", c.io, IO_DTYPES)
    _one_of("cache dtype", c.cache, CACHE_DTYPES)
    if c.num_heads < 1 or c.kv_heads < 1 or c.num_heads % c.kv_heads:
        raise UnsupportedAttentionError(
            f"{c.num_heads} query heads over {c.kv_heads} kv heads: the attention kernels need "
            "query heads in whole groups"
        )
    if not MIN_HEAD_DIM <= c.head_dim <= MAX_HEAD_DIM or c.head_dim % HEAD_DIM_STEP:
        raise UnsupportedAttentionError(
            f"head size {c.head_dim}: the attention kernels cover multiples of {HEAD_DIM_STEP} "
            f"from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"
        )
    if not MIN_BLOCK_SIZE <= c.block_size <= MAX_BLOCK_SIZE or c.block_size & (c.block_size - 1):
        raise UnsupportedAttentionError(
            f"block size {c.block_size}: the attention kernels cover powers of two from "
            f"{MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"
        )
    if not 0 <= c.rotary_dim <= c.head_dim or c.rotary_dim % 2:
        raise UnsupportedAttentionError(
            f"rotary over {c.rotary_dim} of {c.head_dim} elements: the attention kernels need an "
            "even number up to the head size"
        )


def check_capability(config: KernelConfig, capability: str) -> None:
    """Raise UnsupportedAttentionError where no kernels can be compiled for ``capability``."""
    _one_of("compute capability", capability, CAPABILITIES)
    if config.io == "float32":
        raise UnsupportedAttentionError(
            "io dtype float32: device kernels are compiled for float16 and bfloat16; float32 is "
            "for the parity tests on the CPU"
        )
    if config.io == "bfloat16" and capability == "7.5":
        raise UnsupportedAttentionError(
            "io dtype bfloat16: GPUs of compute capability 7.5 have no bfloat16; build for float16 "
            "or leave 7.5 out of the capabilities"
        )


def tile(config: KernelConfig, kernel: str, capability: str) -> Tile:
    """The tile of a kernel. Part of the ABI: the grids of launches follow from it."""
    dim = config.padded_dim
    if kernel == "cache_write":
        return Tile(rows=max(1, 2048 // dim), tokens=0, num_warps=4, num_stages=1)
    if kernel == "reduce":
        return Tile(rows=1, tokens=16, num_warps=4, num_stages=1)
    if capability == "7.5":
        return _tile_without_tensor_cores(config, kernel)
    ample = SHARED_BYTES[capability] > 100 << 10
    # Loading the block table, then what it points to, takes two stages of each step of a pipeline:
    # five stages hold two tiles of keys and values.
    if kernel == "decode":
        rows = min(64 if dim <= 128 else 32, max(16, next_power_of_two(config.group)))
        tokens = 64 if ample or dim <= 64 else 32
        return Tile(rows, tokens if dim <= 128 else tokens // 2, num_warps=4, num_stages=5)
    if dim <= 128:
        # Elsewhere, and with a padded head on 10.0, 64 tokens do not fit the registers.
        wide = ("9.0", "10.0") if dim == config.head_dim else ("9.0",)
        tokens = 64 if dim <= 64 or capability in wide else 32
        return Tile(rows=128, tokens=tokens, num_warps=8, num_stages=5)
    return Tile(rows=64, tokens=32 if ample else 16, num_warps=8, num_stages=5)


def _tile_without_tensor_cores(config: KernelConfig, kernel: str) -> Tile:
    """Triton multiplies on the plain units below 8.0: tiles small enough for the registers."""
    if kernel == "decode":
        rows = min(16 if config.padded_dim <= 128 else 8, next_power_of_two(config.group))
        return Tile(rows, tokens=32, num_warps=4, num_stages=1)
    return Tile(rows=32, tokens=16, num_warps=8, num_stages=1)


def next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _one_of(what: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise UnsupportedAttentionError(f"{what} {value!r}: legal are {', '.join(legal)}")
