"""The parity sweep: cases, their inputs, what the reference makes of them, how far kernels may be.

The tests interpret it on the CPU; on a device the same cases go through the same launch plan.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.attention import cases
from enginewright.plugins.attention.contract import AttentionAttributes
from enginewright.plugins.attention.cuda.config import KernelConfig
from enginewright.plugins.attention.cuda.interpret import Arrays
from enginewright.plugins.attention.cuda.launch import Scalars
from enginewright.plugins.attention.reference import Rotary, Scales, cached_attention

TOLERANCE = {"float32": 1e-5, "float16": 4 * 2.0**-11, "bfloat16": 4 * 2.0**-8}
"""Of out, and of what a cache holds, against 1 or the value where that is more.

float32: sums in another order, cos and sin of float32. Else rotated queries, keys, weights and the
result are each rounded to 11 (8) bits, a relative 2^-12 (2^-9) at most; four of them, twice over.
"""
SPARE_BLOCKS = 3


@dataclass(frozen=True)
class Case:
    """One point of the sweep. ``pasts`` and ``news``: tokens of each row; ``room``: blocks of a row
    in the table, 0 for as many as the longest needs."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 64
    pasts: tuple[int, ...] = (0, 150, 5)
    news: tuple[int, ...] = (21, 70, 0)
    block_size: int = 16
    room: int = 0
    window: int = 0
    softcap: float = 0.0
    rotary_dim: int = 0
    interleaved: bool = False
    sinks: bool = False
    io: str = "float32"
    cache: str = "same"
    native_fp8: bool = False
    capability: str = "8.0"

    def __str__(self) -> str:
        default = Case()
        told = [
            f"{name}={value}"
            for name, value in vars(self).items()
            if value != getattr(default, name)
        ]
        return " ".join(told).replace("pasts=(0, 37, 290, 5) news=(1, 1, 1, 0)", "decode") or "base"

    @property
    def attributes(self) -> AttentionAttributes:
        return AttentionAttributes(
            num_heads=self.heads,
            kv_heads=self.kv_heads,
            scale=self.size**-0.5,
            window=self.window,
            softcap=self.softcap,
            rotary_dim=self.rotary_dim,
            interleaved=int(self.interleaved),
        )

    @property
    def config(self) -> KernelConfig:
        return KernelConfig.from_attributes(
            self.attributes,
            io=self.io,
            head_dim=self.size,
            block_size=self.block_size,
            cache=self.cache,
            has_sinks=self.sinks,
        )

    @property
    def scalars(self) -> Scalars:
        return Scalars(self.attributes.scale, self.window, self.softcap)

    @property
    def blocks(self) -> int:
        """Blocks of a row in the table."""
        lengths = [past + new for past, new in zip(self.pasts, self.news, strict=True)]
        return self.room or -(-max(lengths) // self.block_size)


PREFILL = Case()
DECODE = Case(pasts=(0, 37, 290, 5), news=(1, 1, 1, 0))
_ALL = {"window": 40, "softcap": 3.0, "rotary_dim": 64, "sinks": True}
_CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"heads": 2, "block_size": 32},
    {"heads": 3, "kv_heads": 1, "size": 128},
    {"heads": 8, "kv_heads": 1},
    {"size": 80, "rotary_dim": 80},
    {"size": 96, "rotary_dim": 32},
    {"window": 6},
    {"window": 70},
    {"softcap": 3.0},
    {"rotary_dim": 64},
    {"rotary_dim": 32, "interleaved": True},
    {"sinks": True},
    {**_ALL, "io": "float16"},
    {**_ALL, "io": "bfloat16"},
    {**_ALL, "cache": "int8"},
    {**_ALL, "cache": "fp8"},
    {**_ALL, "cache": "fp8", "native_fp8": True, "io": "float16"},
    {**_ALL, "cache": "int8", "io": "float16", "capability": "7.5"},
)
CASES = tuple(replace(kind, **change) for kind in (PREFILL, DECODE) for change in _CHANGES)
SHARED = tuple(Case(**asdict(case)) for case in cases.CASES)
"""What every lowering is held to; ``CASES`` are the kernels' own."""


def make_inputs(case: Case, seed: int = 7) -> Arrays:
    """Inputs as interpret.run takes them. Pools hold NaN, or where codes have none their largest,
    in every slot that holds no past token, and so does ``out``."""
    rng = np.random.default_rng(seed)
    rows, length = len(case.pasts), max(case.news)
    blocks = rows * case.blocks + SPARE_BLOCKS
    table = rng.permutation(blocks)[: rows * case.blocks].reshape(rows, -1).astype(np.int32)

    def normal(*shape: int) -> NDArray[np.float32]:
        return _rounded(rng.normal(size=shape).astype(np.float32), case.io)

    arrays: Arrays = {
        "q": normal(rows, length, case.heads * case.size),
        "k": normal(rows, length, case.kv_heads * case.size),
        "v": normal(rows, length, case.kv_heads * case.size),
        "k_cache": _pool(case, rng, table, blocks),
        "v_cache": _pool(case, rng, table, blocks),
        "block_table": table,
        "past_lengths": np.array(case.pasts, np.int32),
        "new_lengths": np.array(case.news, np.int32),
        "out": np.full((rows, length, case.heads * case.size), np.nan, np.float32),
    }
    if case.rotary_dim:
        speed = 10.0 ** -np.linspace(0, 2, case.rotary_dim // 2)
        angles = np.arange(case.blocks * case.block_size)[:, None] * speed
        arrays |= {"cos": np.cos(angles, dtype=np.float32), "sin": np.sin(angles, dtype=np.float32)}
    if case.sinks:
        arrays["sinks"] = rng.normal(size=case.heads).astype(np.float32)
    if case.cache != "same":
        # Normal values reach past the largest code here and there: they saturate.
        step = 2.5 / (127 if case.cache == "int8" else 448)
        for name in ("k_scale", "v_scale"):
            arrays[name] = (step * rng.uniform(0.7, 1.4, case.kv_heads)).astype(np.float32)
    return arrays


def expected(case: Case, arrays: Arrays) -> Arrays:
    """out, k_cache and v_cache by the reference."""
    a = {name: array.copy() for name, array in arrays.items()}
    out = cached_attention(
        a["q"],
        a["k"],
        a["v"],
        a["k_cache"],
        a["v_cache"],
        a["block_table"],
        a["past_lengths"],
        a["new_lengths"],
        case.attributes,
        rotary=Rotary(a["cos"], a["sin"]) if case.rotary_dim else None,
        sinks=a.get("sinks"),
        scales=Scales(a["k_scale"], a["v_scale"]) if case.cache != "same" else None,
    )
    return {"out": out, "k_cache": a["k_cache"], "v_cache": a["v_cache"]}


def out_error(case: Case, found: Arrays, wanted: Arrays) -> float:
    """The largest error of ``out`` over real tokens, relative to 1 or to the value if larger."""
    real = np.arange(max(case.news)) < np.array(case.news)[:, None]
    return _error(found["out"][real], wanted["out"][real])


def cache_error(case: Case, arrays: Arrays, found: Arrays, wanted: Arrays) -> float:
    """The same over what both caches hold of new tokens: in steps between codes if quantized."""
    errors = [0.0]
    for name in ("k_cache", "v_cache"):
        mine, theirs = (_new_tokens(case, arrays, side[name]) for side in (found, wanted))
        if case.cache == "same":
            errors.append(_error(mine, theirs))
        else:
            errors.append(float(np.abs(_ordinal(mine) - _ordinal(theirs)).max(initial=0)))
    return max(errors)


def untouched(case: Case, arrays: Arrays, found: Arrays) -> bool:
    """Whether all of the pool but the slots of new tokens is as before, and ``out``
    beyond new_lengths holds no value that was made of another row's tokens."""
    for name in ("k_cache", "v_cache"):
        before, after = arrays[name].copy(), found[name].copy()
        for pool in (before, after):
            for block, slot in _slots(case, arrays):
                pool[block, :, slot] = 0
        if not np.array_equal(before, after, equal_nan=case.cache == "same"):
            return False
    beyond = np.arange(max(case.news)) >= np.array(case.news)[:, None]
    return bool(np.isnan(found["out"][beyond]).all())


def _error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    error = np.abs(found.astype(np.float64) - wanted) / np.maximum(1, np.abs(wanted))
    return float(error.max(initial=0))


def _slots(case: Case, arrays: Arrays) -> list[tuple[int, int]]:
    """Where new tokens go: block and place in it."""
    return [
        (int(arrays["block_table"][row, at // case.block_size]), at % case.block_size)
        for row, (past, new) in enumerate(zip(case.pasts, case.news, strict=True))
        for at in range(past, past + new)
    ]


def _new_tokens(case: Case, arrays: Arrays, pool: NDArray[Any]) -> NDArray[Any]:
    return np.stack([pool[block, :, slot] for block, slot in _slots(case, arrays)])


def _ordinal(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Codes as whole numbers whose neighbours are neighbouring values."""
    wide = codes.astype(np.int64)
    if codes.dtype == np.int8:
        return wide
    return np.where(wide & 0x80, -(wide & 0x7F), wide)


def _pool(
    case: Case, rng: np.random.Generator, table: NDArray[np.int32], blocks: int
) -> NDArray[Any]:
    shape = (blocks, case.kv_heads, case.block_size, case.size)
    past: NDArray[Any]
    canary: float
    if case.cache == "int8":
        past, canary = rng.integers(-128, 128, shape, np.int8), 127
    elif case.cache == "fp8":
        codes = rng.integers(0, 256, shape, np.uint8)
        past, canary = np.where(codes & 0x7F == 0x7F, codes - 1, codes).astype(np.uint8), 0x7F
    else:
        past, canary = _rounded(rng.normal(size=shape).astype(np.float32), case.io), np.nan
    pool = np.full_like(past, canary)
    for row, length in enumerate(case.pasts):
        for at in range(length):
            block, slot = table[row, at // case.block_size], at % case.block_size
            pool[block, :, slot] = past[block, :, slot]
    return pool


def _rounded(values: NDArray[np.float32], io: str) -> NDArray[np.float32]:
    if io == "float16":
        return values.astype(np.float16).astype(np.float32)
    if io == "bfloat16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return values
