"""Scales of a quantized cache, against what a tiny model really caches."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from enginewright.builder.calibration import LARGEST, MARGIN, kv_scales


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_nothing_of_the_text_saturates(model: Any, dtype: Literal["int8", "fp8"]) -> None:
    windows = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 60, 61]]
    scales = kv_scales(model, windows, dtype)
    assert list(scales) == ["k_cache.0", "v_cache.0", "k_cache.1", "v_cache.1"]
    largest = np.zeros((4, 2))
    for window in windows:
        with torch.no_grad():
            layers = model(input_ids=torch.tensor([window])).past_key_values.layers
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        found = [tensor.abs().amax(dim=(0, 2, 3)).numpy() for tensor in tensors]
        largest = np.maximum(largest, found)
    for found, scale in zip(largest, scales.values(), strict=True):
        assert scale.dtype == np.float32
        np.testing.assert_allclose(found / scale, LARGEST[dtype] / MARGIN, rtol=1e-5)


def test_a_head_of_zeros_has_a_scale(model: Any) -> None:
    with torch.no_grad():
        saved = model.model.layers[0].self_attn.v_proj.weight.clone()
        model.model.layers[0].self_attn.v_proj.weight[:16] = 0
    scales = kv_scales(model, [[1, 2, 3]], "int8")
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight[:] = saved
    assert scales["v_cache.0"][0] == 1
    assert 0 < scales["v_cache.0"][1] < 1
