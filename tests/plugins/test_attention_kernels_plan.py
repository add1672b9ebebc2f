"""The launch plan and the limits of the kernels, without triton."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from enginewright.plugins.attention.contract import AttentionAttributes
from enginewright.plugins.attention.cuda import kernel_set
from enginewright.plugins.attention.cuda import launch as plan
from enginewright.plugins.attention.cuda.config import KernelConfig, UnsupportedAttentionError
from enginewright.plugins.attention.cuda.launch import (
    ARGUMENTS,
    POINTERS,
    LaunchError,
    Scalars,
    Shape,
    launches,
    split_count,
    workspace_bytes,
)

CONFIG = KernelConfig("float16", 32, 8, 128, 32, rotary_dim=128)
ADDRESSES = {name: 256 * (1 + at) for at, name in enumerate(POINTERS)}
SCALARS = Scalars(0.125)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"io": "float64"}, "io dtype 'float64': legal are float16, bfloat16, float32"),
        ({"cache": "int4"}, "cache dtype 'int4': legal are same, int8, fp8"),
        ({"head_dim": 24}, "head size 24: .* multiples of 16 from 32 to 256"),
        ({"head_dim": 72}, "head size 72"),
        ({"head_dim": 512, "rotary_dim": 0}, "head size 512"),
        ({"kv_heads": 5}, "32 query heads over 5 kv heads"),
        ({"kv_heads": 0}, "32 query heads over 0 kv heads"),
        ({"block_size": 24}, "block size 24: .* powers of two from 8 to 1024"),
        ({"block_size": 4}, "block size 4"),
        ({"rotary_dim": 130}, "rotary over 130 of 128"),
        ({"rotary_dim": 3}, "rotary over 3"),
    ],
)
def test_limits_are_named(change, message):
    with pytest.raises(UnsupportedAttentionError, match=message):
        replace(CONFIG, **change)


def test_config_of_a_node_and_its_data():
    attributes = AttentionAttributes(32, 8, 0.125, window=9, softcap=30.0, rotary_dim=64)
    config = KernelConfig.from_attributes(attributes, io="bfloat16", head_dim=96, block_size=16)
    assert config.has_softcap
    assert (config.group, config.padded_dim, config.quantized) == (4, 128, False)
    assert KernelConfig.from_data(config.to_data()) == config
    assert replace(config, has_sinks=True).key != config.key
    # Layers that differ in window alone share kernels.
    other = replace(attributes, window=0)
    assert config == KernelConfig.from_attributes(other, io="bfloat16", head_dim=96, block_size=16)


def test_prefill():
    write, prefill = launches(CONFIG, "8.6", Shape(3, 100, 40), SCALARS, ADDRESSES)
    assert (write.kernel, write.grid) == ("cache_write", (50, 1, 3))
    assert (prefill.kernel, prefill.grid) == ("prefill", (4, 8, 3))
    for launch in (write, prefill):
        assert tuple(argument.name for argument in launch.arguments) == ARGUMENTS[launch.kernel]
    values = {argument.name: argument for argument in prefill.arguments}
    assert values["q"].value == ADDRESSES["q"]
    assert (values["tokens"].kind, values["tokens"].value) == ("int32", 100)
    assert values["window"].value == plan.NO_WINDOW
    assert (values["score_scale"].kind, values["cap"].value) == ("float32", 0.0)
    assert values["score_scale"].value == pytest.approx(0.125 * 1.4426950408889634)


def test_decode_splits_by_shapes_alone():
    _, decode, reduce = launches(CONFIG, "9.0", Shape(1, 1, 256), SCALARS, ADDRESSES)
    assert decode.grid == (49, 8, 1)
    assert reduce.grid == (32, 1, 1)
    _, decode = launches(CONFIG, "9.0", Shape(64, 1, 256), SCALARS, ADDRESSES)
    assert decode.grid == (1, 8, 64)
    wide = replace(CONFIG, num_heads=71, kv_heads=1)
    _, decode, _ = launches(wide, "9.0", Shape(1, 1, 64), SCALARS, ADDRESSES)
    assert decode.grid == (16, 2, 1)


@pytest.mark.parametrize("batch", [1, 3, 32, 500])
def test_workspace_holds_every_smaller_step(batch):
    size = workspace_bytes(CONFIG, batch)
    for rows in range(1, batch + 1):
        for blocks in (1, 9, 300, 5000):
            splits = split_count(CONFIG, rows, blocks)
            assert 1 <= splits <= plan.MAX_SPLITS
            assert rows * splits * 32 * (128 + 1) * 4 <= size


def test_pointers_are_checked():
    without = {name: at for name, at in ADDRESSES.items() if name not in ("sinks", "k_scale")}
    assert launches(CONFIG, "8.0", Shape(1, 1, 9), SCALARS, without)
    with pytest.raises(LaunchError, match="no pointer 'sinks'"):
        launches(replace(CONFIG, has_sinks=True), "8.0", Shape(1, 1, 9), SCALARS, without)
    with pytest.raises(LaunchError, match="no pointer 'workspace'"):
        launches(CONFIG, "8.0", Shape(1, 1, 9), SCALARS, {**ADDRESSES, "workspace": None})
    with pytest.raises(LaunchError, match="'v' is 0x308: align it to 16 bytes"):
        launches(CONFIG, "8.0", Shape(1, 1, 9), SCALARS, {**ADDRESSES, "v": 0x308})


def test_rows_too_long_for_32_bits():
    with pytest.raises(LaunchError, match="524288 tokens of a row in one step"):
        launches(CONFIG, "8.0", Shape(1, 1 << 19, 1 << 14), SCALARS, ADDRESSES)


def test_the_abi_is_what_it_was_and_follows_arguments(monkeypatch):
    before = kernel_set.abi_digest()
    assert before == kernel_set.abi_digest()
    monkeypatch.setitem(plan.ARGUMENTS, "reduce", plan.ARGUMENTS["reduce"][::-1])
    assert kernel_set.abi_digest() != before
    monkeypatch.undo()
    monkeypatch.setattr(plan, "MIN_SPLIT_TOKENS", 64)
    assert kernel_set.abi_digest() != before


def test_what_the_runtime_imports_needs_no_torch_and_no_triton():
    code = (
        "import sys\n"
        "from enginewright.plugins.attention.cuda import config, kernel_set, launch\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "sys.exit(bool(loaded & {'torch', 'triton', 'onnx'}))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
