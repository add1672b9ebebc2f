"""Every family, lowered for TensorRT: known ops, strongly typed, and refusals by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import transformers

from enginewright.builder.device_weights import DeviceTensor
from enginewright.builder.export import Exported, attach_weights, export
from enginewright.builder.families import FAMILIES
from enginewright.builder.passes.lower_plugin_attention import PLUGIN_TYPE
from enginewright.builder.targets.tensorrt.lowering import OPS, lower
from enginewright.builder.weight_tensor import WeightTensor
from enginewright.builder.weights import ArrayWeight, Weight
from enginewright.runtime.errors import UnsupportedModelError

CONTEXT = 96
PRECISIONS = ("fp16", "bf16", "int8", "int4", "fp8", "nvfp4")
_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 311,
    "max_position_embeddings": 256,
}
_GEMMA = {**_COMMON, "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", _COMMON),
    "MistralForCausalLM": ("MistralConfig", {**_COMMON, "sliding_window": 24}),
    "Qwen2ForCausalLM": ("Qwen2Config", _COMMON),
    "Qwen3ForCausalLM": ("Qwen3Config", {**_COMMON, "head_dim": 16}),
    "Gemma2ForCausalLM": ("Gemma2Config", _GEMMA),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**_GEMMA, "sliding_window_pattern": 2}),
    "Phi3ForCausalLM": ("Phi3Config", _COMMON),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 311, "n_positions": 256},
    ),
    "GPTNeoXForCausalLM": (
        "GPTNeoXConfig",
        {**_COMMON, "num_key_value_heads": 4, "rope_parameters": _PARTIAL},
    ),
    "OPTForCausalLM": ("OPTConfig", {**_COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "Olmo2ForCausalLM": ("Olmo2Config", _COMMON),
    "GraniteForCausalLM": ("GraniteConfig", {**_COMMON, "attention_multiplier": 0.2}),
    "SmolLM3ForCausalLM": ("SmolLM3Config", {**_COMMON, "no_rope_layer_interval": 2}),
}
REFUSED = {
    "MistralForCausalLM": "sliding window of 24 tokens",
    "Gemma2ForCausalLM": "soft cap of 50",
    "Gemma3ForCausalLM": "sliding window of 24 tokens",
}
"""Not built with native attention."""


class _Counted(Weight):
    """Random values that are made when they are read; the reads are counted."""

    reads = 0

    def rows(self, start: int, stop: int) -> np.ndarray:
        type(self).reads += 1
        rng = np.random.default_rng(start)
        return rng.normal(size=(stop - start, *self.shape[1:])).astype(np.float32) / 8


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> Callable[[str], Exported]:
    """``traced(architecture)``: a new graph each time; each architecture is traced once."""
    folder, found = tmp_path_factory.mktemp("traced"), {}

    def trace(architecture: str) -> Exported:
        file: Path = folder / f"{architecture}.onnx"
        if architecture not in found:
            name, fields = CONFIGS[architecture]
            config = getattr(transformers, name)(**fields, pad_token_id=2)
            found[architecture] = exported = export(config, FAMILIES[architecture])
            ir.save(exported.model, file)
        made = found[architecture]
        return Exported(ir.load(file), made.caches, made.owners)

    return trace


@pytest.fixture(scope="module")
def lowered(traced) -> Callable[..., ir.Model]:
    """``lowered(architecture, precision, attention, **more)``; biases and norms are small."""

    def make(architecture: str, precision: str, attention: str, **more: Any) -> ir.Model:
        exported = traced(architecture)
        shapes = {
            owner: tuple(exported.model.graph.initializers[name].shape.numpy())
            for name, owner in exported.owners.items()
        }

        def weight(name: str) -> Weight:
            shape = shapes[name]
            if len(shape) == 1:
                return ArrayWeight(np.full(shape, 0.5, np.float32))
            return _Counted(shape)

        model = attach_weights(exported, weight)
        lower(model, precision=precision, attention=attention, max_context=CONTEXT, **more)
        return model

    return make


def _check_types(model: ir.Model) -> None:
    """Every value has a type, and where ONNX knows the op it is the type that ONNX infers."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    assert all(value.dtype is not None for value in values.values())
    declared = {name: value.dtype for name, value in values.items()}
    proto = ir.to_proto(model)
    known = {value.name for node in model.graph if not node.domain for value in node.outputs}
    kept = [info for info in proto.graph.value_info if info.name not in known]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    found = {info.name: info.type.tensor_type.elem_type for info in inferred.graph.value_info}
    assert known <= {*found, *(value.name for value in inferred.graph.output)}
    for name in known & set(found):
        assert ir.DataType(found[name]) == declared[name], name


def _names(values: Any) -> list[str]:
    return [value.name for value in values]


def test_every_supported_architecture_is_here():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if name not in REFUSED])
def test_native(lowered, architecture):
    model = lowered(architecture, "fp16", "native")
    assert {node.op_type for node in model.graph} <= OPS - {PLUGIN_TYPE}
    _check_types(model)
    caches = [name for name in _names(model.graph.inputs) if "cache" in name]
    assert _names(model.graph.inputs) == ["input_ids", "past_lengths", *caches, "logits_index"]
    assert _names(model.graph.outputs) == ["logits", *(f"{name}.out" for name in caches)]
    for value in (*model.graph.inputs, *model.graph.outputs):
        if "cache" in value.name:
            assert value.dtype == ir.DataType.FLOAT16
            assert list(value.shape)[2] == CONTEXT
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("architecture", REFUSED)
def test_native_refuses_by_name(lowered, architecture):
    with pytest.raises(UnsupportedModelError, match=f"{REFUSED[architecture]}.*attention: plugin"):
        lowered(architecture, "fp16", "native")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_plugin(lowered, architecture):
    model = lowered(architecture, "bf16", "plugin")
    counts = {node.op_type for node in model.graph}
    assert counts <= OPS
    assert not counts & {"TRT_Attention", "TensorScatter", "RotaryEmbedding"}
    _check_types(model)
    caches = [name for name in _names(model.graph.inputs) if "cache" in name]
    step = ["input_ids", "past_lengths", "new_lengths", "block_table"]
    assert _names(model.graph.inputs) == [*step, *caches, "logits_index"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_precisions(lowered, architecture, precision):
    model = lowered(architecture, precision, "native")
    assert {node.op_type for node in model.graph} <= OPS
    _check_types(model)


def test_lowering_reads_no_matrix(lowered):
    before = _Counted.reads
    model = lowered("LlamaForCausalLM", "int4", "native")
    assert _Counted.reads == before
    large = [
        value.const_value for value in model.graph.initializers.values() if len(value.shape) > 1
    ]
    lazy = [tensor for tensor in large if isinstance(tensor, DeviceTensor | WeightTensor)]
    assert len(lazy) == len(large) - 2  # the tables of rotary
    assert any(isinstance(tensor, DeviceTensor) for tensor in lazy)


@pytest.mark.parametrize("kv_cache", ["int8", "fp8"])
def test_a_quantized_cache(lowered, kv_cache):
    scales = {f"{kind}_cache.{i}": np.ones(2, np.float32) for kind in "kv" for i in range(2)}
    model = lowered(
        "LlamaForCausalLM", "fp16", "plugin", kv_cache=kv_cache, kv_scales=scales, block_size=64
    )
    node = next(node for node in model.graph if node.op_type == PLUGIN_TYPE)
    assert len(node.inputs) == 12
    assert list(node.inputs[3].shape)[1:] == [2, 64, 16]
    assert node.inputs[3].dtype == node.outputs[1].dtype != ir.DataType.FLOAT16
