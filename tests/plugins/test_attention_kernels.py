"""The Triton kernels, interpreted on the CPU through their launch plan, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from enginewright.plugins.attention.cuda.config import UnsupportedAttentionError
from enginewright.plugins.attention.cuda.interpret import interpreter, run
from enginewright.plugins.attention.cuda.launch import split_count
from enginewright.plugins.attention.cuda.parity import (
    CASES,
    DECODE,
    SHARED,
    TOLERANCE,
    Case,
    cache_error,
    expected,
    make_inputs,
    out_error,
    untouched,
)
from enginewright.plugins.attention.reference import decode, encode

pytest.importorskip("triton")
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def interpreted():
    """Runs a case in a process whose Triton interprets; the results and the kernels' names."""
    with interpreter() as pool:

        def submit(case: Case, arrays):
            given = (case.config, case.capability, case.scalars, arrays, case.native_fp8)
            return pool.submit(run, *given).result(timeout=120)

        yield submit


@pytest.mark.parametrize("case", [*CASES, *SHARED], ids=str)
def test_kernels_match_the_reference(case, interpreted):
    if case.size == 16:
        with pytest.raises(UnsupportedAttentionError, match=f"head size {case.size}"):
            _ = case.config
        pytest.skip("the kernels' heads begin at 32 dimensions")
    arrays = make_inputs(case)
    wanted = expected(case, arrays)
    found, _ = interpreted(case, arrays)
    assert out_error(case, found, wanted) <= TOLERANCE[case.io]
    # A quantized value within the tolerance of the middle between two codes may take either.
    allowed = TOLERANCE[case.io] if case.cache == "same" else 1
    assert cache_error(case, arrays, found, wanted) <= allowed
    assert untouched(case, arrays, found)


@pytest.mark.parametrize(
    ("room", "splits", "kernels"),
    [
        (8, 1, ("cache_write", "decode")),
        (9, 2, ("cache_write", "decode", "reduce")),
        (40, 5, ("cache_write", "decode", "reduce")),
        (400, 50, ("cache_write", "decode", "reduce")),
    ],
)
@pytest.mark.parametrize("sinks", [False, True])
def test_any_number_of_splits(room, splits, kernels, sinks, interpreted):
    """Rows fill all splits, some, or one, of a table that has room for more."""
    longest = min(room * 16 - 1, 700)
    case = Case(
        heads=2,
        kv_heads=1,
        pasts=(longest,),
        news=(1,),
        room=room,
        sinks=sinks,
        softcap=2.0,
    )
    assert split_count(case.config, 1, room) == splits
    arrays = make_inputs(case)
    found, ran = interpreted(case, arrays)
    assert ran == kernels
    assert out_error(case, found, expected(case, arrays)) <= TOLERANCE[case.io]


@pytest.mark.parametrize("window", [0, 20])
def test_chunks_give_what_one_prefill_gives(window, interpreted):
    whole = Case(pasts=(0, 0), news=(50, 41), rotary_dim=64, window=window)
    arrays = make_inputs(whole)
    at_once, _ = interpreted(whole, arrays)
    pools = {name: arrays[name] for name in ("k_cache", "v_cache")}
    outs = []
    for start, end in ((0, 17), (17, 37), (37, 38), (38, 50)):
        news = tuple(min(max(new - start, 0), end - start) for new in whole.news)
        chunk = replace(whole, pasts=tuple(min(start, new) for new in whole.news), news=news)
        given = {name: arrays[name][:, start:end] for name in ("q", "k", "v", "out")}
        lengths = {
            "past_lengths": np.array(chunk.pasts, np.int32),
            "new_lengths": np.array(chunk.news, np.int32),
        }
        found, _ = interpreted(chunk, {**arrays, **given, **lengths, **pools})
        pools = {name: found[name] for name in pools}
        outs.append(found["out"])
    for name, pool in pools.items():
        np.testing.assert_array_equal(pool, at_once[name])
    together = {"out": np.concatenate(outs, axis=1)}
    assert out_error(whole, together, at_once) <= TOLERANCE["float32"]


def test_a_wrong_kernel_would_be_found(interpreted):
    """The sweep's measure sees one token that is missing, and one that is written elsewhere."""
    arrays = make_inputs(DECODE)
    wanted = expected(DECODE, arrays)
    found, _ = interpreted(DECODE, arrays)
    blind = {**arrays, "past_lengths": arrays["past_lengths"] - np.int32([0, 1, 0, 0])}
    shorter, _ = interpreted(DECODE, blind)
    assert out_error(DECODE, found, wanted) <= TOLERANCE["float32"]
    assert out_error(DECODE, shorter, wanted) > 100 * TOLERANCE["float32"]
    assert not untouched(DECODE, arrays, shorter)


def test_codes_of_the_reference_are_those_of_torch():
    """Every e4m3 code, and rounding of values between, at and beyond them."""
    codes = np.arange(256, dtype=np.uint8)
    codes = codes[codes & 0x7F != 0x7F]
    values = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float64).numpy()
    np.testing.assert_array_equal(decode(codes), values)
    np.testing.assert_array_equal(encode(values, np.dtype(np.uint8)), codes)
    ordered = np.unique(values)
    middles = (ordered[1:] + ordered[:-1]) / 2
    between = np.concatenate([middles, middles * 1.001, middles * 0.999]).astype(np.float32)
    wanted = torch.from_numpy(between).to(torch.float8_e4m3fn).to(torch.float64).numpy()
    np.testing.assert_array_equal(
        decode(encode(between.astype(np.float64), np.dtype(np.uint8))), wanted
    )
    beyond = np.array([1e6, -1e6, 449.0])
    np.testing.assert_array_equal(decode(encode(beyond, np.dtype(np.uint8))), [448, -448, 448])
    np.testing.assert_array_equal(
        encode(np.array([0.5, 1.5, -200.0, 200.0]), np.dtype(np.int8)), [0, 2, -128, 127]
    )
