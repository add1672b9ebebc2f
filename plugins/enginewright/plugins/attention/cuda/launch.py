"""The launches of one CachedAttention node, from shapes alone.

| kernel      | grid (x, y, z)                                      | when                |
|-------------|-----------------------------------------------------|---------------------|
| cache_write | (tiles of tokens * kv_heads, 1, B)                  | always              |
| decode      | (splits, kv_heads * tiles of a group, B)            | one token a row     |
| reduce      | (heads, 1, B)                                       | splits > 1          |
| prefill     | (tiles of tokens * group, kv_heads, B)              | more tokens a row   |

Nothing here depends on the values of lengths, so that a captured CUDA graph stays valid: kernels
read lengths from device memory and leave early. Tensors: see contract.py; ``workspace`` is float32,
[B, heads, splits, D] partial results and then [B, heads, splits] their log-sum-exp to base 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from enginewright.plugins.attention.cuda.config import KERNELS, KernelConfig, tile

_ROW = ("block_table", "past_lengths", "new_lengths")
_READ = ("q", "k_cache", "v_cache", *_ROW, "cos", "sin", "sinks", "k_scale", "v_scale", "out")
_SCORES = ("window", "score_scale", "cap")
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "cache_write": (
        *("k", "v", "k_cache", "v_cache", *_ROW, "cos", "sin", "k_scale", "v_scale"),
        *("tokens", "blocks"),
    ),
    "decode": (*_READ, "workspace", "blocks", "splits", *_SCORES),
    "reduce": (
        *("past_lengths", "new_lengths", "sinks", "out", "workspace"),
        *("blocks", "splits", "window"),
    ),
    "prefill": (*_READ, "tokens", "blocks", *_SCORES),
}
"""Arguments of each kernel in order. Those that a config does without are null pointers."""
assert tuple(ARGUMENTS) == KERNELS
POINTERS = (
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
    "out",
    "workspace",
)
FLOATS = ("score_scale", "cap")
ALIGNMENT = 16
"""Bytes to which every pointer has to be aligned: the kernels load 16 bytes at once."""
DECODE_PROGRAMS = 3 * 132
"""Programs that a decode is split into: some for each SM of a large GPU, whatever the device."""
MIN_SPLIT_TOKENS = 128
MAX_SPLITS = 256
NO_WINDOW = 1 << 30
MAX_ROW_ELEMENTS = 1 << 31
"""Kernels count elements of q within a row by 32 bits; rows and the pools go by 64."""
LOG2E = math.log2(math.e)


class LaunchError(ValueError):
    """A launch cannot be planned: a pointer is missing or not aligned, or a row is too long."""


@dataclass(frozen=True)
class Shape:
    """Of one step: rows, tokens of a row (S), blocks of a row in the table (n)."""

    batch: int
    tokens: int
    blocks: int

    def __post_init__(self) -> None:
        assert min(self.batch, self.tokens, self.blocks) >= 1


@dataclass(frozen=True)
class Scalars:
    """Attributes that are arguments. window and softcap: 0 is none."""

    scale: float
    window: int = 0
    softcap: float = 0.0


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel. A pointer: an address (for the interpreter, what stands for the
    tensor), or None for a null pointer: the config does without."""

    name: str
    kind: Literal["pointer", "int32", "float32"]
    value: Any


@dataclass(frozen=True)
class Launch:
    """One launch, on the stream of the one before it. Threads, shared memory and hidden arguments
    that follow these: see kernel_set.KernelEntry."""

    kernel: str
    grid: tuple[int, int, int]
    arguments: tuple[Argument, ...]


def launches(
    config: KernelConfig,
    capability: str,
    shape: Shape,
    scalars: Scalars,
    pointers: Mapping[str, Any],
) -> tuple[Launch, ...]:
    """What runs one node, in order. ``pointers``: by the names in POINTERS, those that the config
    has no use for may be missing; ``workspace``: of ``workspace_bytes``, used where S = 1.

    Raises LaunchError for a missing or unaligned pointer, and for rows too long.
    """
    if shape.tokens * config.num_heads * config.head_dim >= MAX_ROW_ELEMENTS:
        raise LaunchError(f"{shape.tokens} tokens of a row in one step: prefill it in chunks")
    splits = split_count(config, shape.batch, shape.blocks)
    partial = shape.tokens == 1 and splits > 1
    values = {**_pointers(config, partial, pointers), **_scalars(config, shape, scalars, splits)}

    def launch(kernel: str, grid: tuple[int, int, int]) -> Launch:
        return Launch(kernel, grid, tuple(_argument(name, values) for name in ARGUMENTS[kernel]))

    written = tile(config, "cache_write", capability).rows
    write = launch("cache_write", (_tiles(shape.tokens * config.kv_heads, written), 1, shape.batch))
    if shape.tokens > 1:
        rows = tile(config, "prefill", capability).rows
        grid = (_tiles(shape.tokens * config.group, rows), config.kv_heads, shape.batch)
        return write, launch("prefill", grid)
    heads = config.kv_heads * _tiles(config.group, tile(config, "decode", capability).rows)
    decode = launch("decode", (splits, heads, shape.batch))
    if not partial:
        return write, decode
    return write, decode, launch("reduce", (config.num_heads, 1, shape.batch))


def split_count(config: KernelConfig, batch: int, blocks: int) -> int:
    """Into how many parts a decode cuts each row's cache, at most."""
    wanted = DECODE_PROGRAMS // (batch * config.kv_heads)
    possible = _tiles(blocks * config.block_size, MIN_SPLIT_TOKENS)
    return max(1, min(wanted, possible, MAX_SPLITS))


def workspace_bytes(config: KernelConfig, max_batch: int) -> int:
    """Device memory that a decode of up to ``max_batch`` rows takes; it holds nothing between
    nodes, so that all nodes of an engine share one."""
    unbounded = MAX_SPLITS * MIN_SPLIT_TOKENS
    rows = max(batch * split_count(config, batch, unbounded) for batch in range(1, max_batch + 1))
    return rows * config.num_heads * (config.head_dim + 1) * 4


def _pointers(config: KernelConfig, partial: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    unused = set() if partial else {"workspace"}
    unused |= set() if config.rotary_dim else {"cos", "sin"}
    unused |= set() if config.has_sinks else {"sinks"}
    unused |= set() if config.quantized else {"k_scale", "v_scale"}
    values = {name: given.get(name) for name in POINTERS}
    for name, value in values.items():
        if value is None and name not in unused:
            raise LaunchError(f"no pointer {name!r} for an attention of config {config}")
        if isinstance(value, int) and value % ALIGNMENT:
            raise LaunchError(f"pointer {name!r} is {value:#x}: align it to {ALIGNMENT} bytes")
    return values


def _scalars(config: KernelConfig, shape: Shape, scalars: Scalars, splits: int) -> dict[str, float]:
    assert config.has_softcap == (scalars.softcap > 0)
    # Scores are to base 2. tanh(x) = 1 - 2 / (exp2(2 log2(e) x) + 1), its factor folded in as well.
    scale, cap = scalars.scale * LOG2E, 0.0
    if config.has_softcap:
        scale, cap = 2 * scale / scalars.softcap, scalars.softcap * LOG2E
    return {
        "tokens": shape.tokens,
        "blocks": shape.blocks,
        "splits": splits,
        "window": scalars.window or NO_WINDOW,
        "score_scale": scale,
        "cap": cap,
    }


def _argument(name: str, values: Mapping[str, Any]) -> Argument:
    if name in POINTERS:
        return Argument(name, "pointer", values[name])
    return Argument(name, "float32" if name in FLOATS else "int32", values[name])


def _tiles(size: int, per_tile: int) -> int:
    return -(-size // per_tile)
