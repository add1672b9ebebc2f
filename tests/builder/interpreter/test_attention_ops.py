"""The ops over a cache, held to the numpy reference of CachedAttention."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from enginewright.builder.interpreter.errors import GraphError
from enginewright.plugins.attention.contract import AttentionAttributes
from enginewright.plugins.attention.reference import Rotary, Scales, encode
from enginewright.plugins.attention.reference import cached_attention as reference

BLOCK, BLOCKS, PER_ROW = 4, 40, 12


@dataclass(frozen=True)
class Case:
    """One point of the sweep; pasts and news hold one length a row."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 16
    pasts: tuple[int, ...] = (0, 0, 0)
    news: tuple[int, ...] = (7, 3, 11)
    window: int = 0
    softcap: float = 0.0
    rotary_dim: int = 0
    interleaved: int = 0
    sinks: bool = False

    @property
    def attributes(self) -> AttentionAttributes:
        return AttentionAttributes(
            self.heads,
            self.kv_heads,
            self.size**-0.5,
            self.window,
            self.softcap,
            self.rotary_dim,
            self.interleaved,
        )


PREFILL = Case()
DECODE = Case(pasts=(5, 31, 17), news=(1, 1, 1))
EXTEND = Case(pasts=(13, 0, 2), news=(9, 4, 1))
CASES = [
    replace(kind, **change)
    for kind in (PREFILL, DECODE, EXTEND)
    for change in (
        {},
        {"kv_heads": 4},
        {"heads": 9, "kv_heads": 3, "size": 64},
        {"window": 6},
        {"softcap": 3.0},
        {"rotary_dim": 16},
        {"rotary_dim": 8, "interleaved": 1},
        {"sinks": True},
        {"window": 6, "softcap": 3.0, "rotary_dim": 12, "sinks": True},
    )
]


@dataclass
class Tensors:
    """What a node is given, pages in a random order."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    k_cache: np.ndarray
    v_cache: np.ndarray
    table: np.ndarray
    past: np.ndarray
    new: np.ndarray
    rotary: Rotary | None
    sinks: np.ndarray | None


@pytest.fixture(params=CASES, ids=str)
def case(request) -> Case:
    return request.param


@pytest.fixture
def tensors(case: Case, rng) -> Tensors:
    rows, length = len(case.pasts), max(case.news)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    angles = np.arange(48)[:, None] / 10.0 ** np.linspace(0, 2, case.rotary_dim // 2)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return Tensors(
        q=normal(rows, length, case.heads * case.size),
        k=normal(rows, length, case.kv_heads * case.size),
        v=normal(rows, length, case.kv_heads * case.size),
        k_cache=normal(BLOCKS, case.kv_heads, BLOCK, case.size),
        v_cache=normal(BLOCKS, case.kv_heads, BLOCK, case.size),
        table=rng.permutation(BLOCKS)[: rows * PER_ROW].reshape(rows, PER_ROW).astype(np.int32),
        past=np.array(case.pasts, np.int32),
        new=np.array(case.news, np.int32),
        rotary=Rotary(cos, sin) if case.rotary_dim else None,
        sinks=normal(case.heads) if case.sinks else None,
    )


def _operands(t: Tensors) -> list[torch.Tensor]:
    arrays = [t.q, t.k, t.v, t.k_cache, t.v_cache, t.table, t.past, t.new]
    arrays += [t.rotary.cos, t.rotary.sin] if t.rotary else []
    arrays += [] if t.sinks is None else [t.sinks]
    return [torch.from_numpy(array.copy()) for array in arrays]


def _attributes(case: Case) -> dict[str, int | float]:
    return {**vars(case.attributes), "has_sinks": int(case.sinks), "quantized": 0}


def _reference(case: Case, t: Tensors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pools = t.k_cache.copy(), t.v_cache.copy()
    lengths = t.table, t.past, t.new
    out = reference(t.q, t.k, t.v, *pools, *lengths, case.attributes, t.rotary, t.sinks)
    return out, *pools


def test_cached_attention_is_its_reference(case, tensors, run_node):
    found = run_node(
        "EnginewrightCachedAttention",
        _operands(tensors),
        _attributes(case),
        domain="enginewright",
        outputs=3,
    )
    for ours, theirs in zip(found, _reference(case, tensors), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_cached_attention_rounds_its_output_once(case, tensors, run_node, kind):
    """The reference over the same halves, the cache rounded as it is written."""
    t, numpy_kind = tensors, np.float16 if kind == torch.float16 else np.float32
    for name in ("q", "k", "v", "k_cache", "v_cache"):
        rounded = torch.from_numpy(getattr(t, name)).to(kind)
        setattr(t, name, rounded.float().numpy().astype(numpy_kind))
    operands = [x.to(kind) if at < 5 else x for at, x in enumerate(_operands(t))]
    found = run_node(
        "EnginewrightCachedAttention",
        operands,
        _attributes(case),
        domain="enginewright",
        outputs=3,
    )
    assert [x.dtype for x in found] == [kind] * 3
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}[kind]
    for ours, theirs in zip(found, _reference(case, t), strict=True):
        np.testing.assert_allclose(
            ours.float().numpy(), theirs.astype(np.float32), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_a_quantized_cache_is_its_reference(case, tensors, run_node, rng, kind):
    """The reference holds fp8 as its bits, torch as a type."""
    t, numpy_kind = tensors, np.int8 if kind == torch.int8 else np.uint8
    largest = 127 if kind == torch.int8 else 448
    scales = Scales(*((3 + rng.random((2, case.kv_heads))).astype(np.float32) / largest))
    pools = [
        encode(cache * 0.6 / scale[:, None, None], np.dtype(numpy_kind))
        for cache, scale in ((t.k_cache, scales.k), (t.v_cache, scales.v))
    ]
    operands = _operands(t)
    operands[3:5] = [torch.from_numpy(pool.copy()).view(kind) for pool in pools]
    operands += [torch.from_numpy(scales.k), torch.from_numpy(scales.v)]
    found = run_node(
        "EnginewrightCachedAttention",
        operands,
        {**_attributes(case), "quantized": 1},
        domain="enginewright",
        outputs=3,
    )
    lengths = t.table, t.past, t.new
    extras = case.attributes, t.rotary, t.sinks, scales
    wanted = reference(t.q, t.k, t.v, *pools, *lengths, *extras)
    for ours, pool in zip(found[1:], pools, strict=True):
        codes = ours.view(torch.uint8).numpy().view(numpy_kind)
        differing = codes != pool  # float32 and float64 may fall on both sides of a tie
        assert differing.mean() < 1e-3
    np.testing.assert_allclose(found[0].numpy(), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "case", [c for c in CASES if not (c.window or c.softcap or c.rotary_dim or c.sinks)], ids=str
)
def test_native_layers_are_the_reference_over_one_block(case, tensors, run_node):
    """TensorScatter and TRT_Attention over the padded grid, as the lowering puts them together."""
    t, rows = tensors, len(case.pasts)
    whole = [
        np.stack([np.concatenate(list(pool[pages]), axis=1) for pages in t.table])
        for pool in (t.k_cache, t.v_cache)
    ]
    t.k_cache, t.v_cache, t.table = *whole, np.arange(rows, dtype=np.int32)[:, None]
    wanted, *caches = _reference(case, t)

    def heads(flat: np.ndarray, count: int) -> torch.Tensor:
        split = flat.reshape(*flat.shape[:2], count, case.size)
        return torch.from_numpy(np.ascontiguousarray(split.transpose(0, 2, 1, 3)))

    past = torch.from_numpy(t.past)
    scattered = [
        run_node(
            "TensorScatter",
            [torch.from_numpy(c), heads(x, case.kv_heads), past.long()],
            {"axis": 2},
        )[0]
        for c, x in ((t.k_cache, t.k), (t.v_cache, t.v))
    ]
    q = heads(t.q, case.heads) * case.size**-0.5
    forms = {"query_form": "padded_bhnd", "kv_form": "padded_bhnd"}
    (out,) = run_node(
        "TRT_Attention",
        [q, *scattered, None, None, past + t.q.shape[1]],
        {"causal_kind": "lower_right", **forms},
        domain="trt",
    )
    flat = out.transpose(1, 2).reshape(t.q.shape).numpy()
    for row, (old, new) in enumerate(zip(case.pasts, case.news, strict=True)):
        np.testing.assert_allclose(flat[row, :new], wanted[row, :new], rtol=2e-5, atol=2e-5)
        for ours, theirs in zip(scattered, caches, strict=True):
            np.testing.assert_array_equal(ours[row, :, : old + new], theirs[row, :, : old + new])


def test_upper_left_counts_from_the_first_key(run_node):
    q, kv = torch.randn(1, 1, 2, 8), torch.randn(1, 1, 4, 8)
    attributes = {
        "causal_kind": "upper_left",
        "query_form": "padded_bhnd",
        "kv_form": "padded_bhnd",
    }
    (out,) = run_node("TRT_Attention", [q, kv, kv], attributes, domain="trt")
    torch.testing.assert_close(out[0, 0, 0], kv[0, 0, 0])  # it sees but one key


def test_a_token_beyond_the_cache_is_an_error(run_node):
    cache, new = torch.zeros(2, 1, 8, 4), torch.ones(2, 1, 3, 4)
    with pytest.raises(GraphError, match=r"3 tokens at \[0, 6\] do not fit a cache of 8"):
        run_node("TensorScatter", [cache, new, torch.tensor([0, 6])], {"axis": 2})
