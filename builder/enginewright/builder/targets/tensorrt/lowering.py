"""The exported graph, lowered for TensorRT-RTX and TensorRT: standard ops, strongly typed.

T is float16, or bfloat16 under precision bf16. The graph's inputs and outputs:

| tensor                       | shape                               | dtype                |
|------------------------------|-------------------------------------|----------------------|
| input_ids                    | [B, S]                              | int64                |
| past_lengths                 | [B]                                 | int32                |
| new_lengths                  | [B], plugin                         | int32                |
| block_table                  | [B, n], plugin                      | int32                |
| logits_index                 | [L]                                 | int64                |
| k_cache.i, v_cache.i, + .out | native: [B, kv_heads, C, D]         | T                    |
|                              | plugin: [blocks, kv_heads, size, D] | T, int8, float8 e4m3 |
| logits                       | [L, V]                              | float32              |
| top_logits, top_ids,         | logits: device;                     |                      |
| log_normalizer               | see passes/reduce_logits.py         |                      |

After ``lower`` the graph holds these ops and no others (domain "" unless it is named):

| op                                              | where, types                                  |
|-------------------------------------------------|-----------------------------------------------|
| Gather                                          | embeddings, wanted rows; T                    |
| Cast                                            | T <-> float32 round norms, behind the head    |
| RMSNormalization, LayerNormalization            | axis -1, all float32                          |
| Add, Sub, Mul, Div, Tanh                        | T; behind the head float32                    |
| Relu, Swish, Gelu                               | T; Gelu of both kinds                         |
| TopK, Exp, Log                                  | behind the logits                             |
| MatMul                                          | T; a weight [N, K] stands behind Transpose,   |
|                                                 | a layer's in int8, int4, fp8 is [K, N]        |
| DequantizeLinear                                | int8, int4, fp8, fp4 -> T, a scale of an      |
|                                                 | output or of a block of inputs                |
| ReduceSum                                       | T: x summed by blocks; behind the logits      |
| Reshape, Transpose, Split, Slice, Concat,       | layout, any type                              |
| Squeeze, Unsqueeze, Shape, Range                |                                               |
| RotaryEmbedding                                 | native; T [B, heads, S, D], position_ids      |
| TensorScatter                                   | native; axis 2, linear                        |
| trt::TRT_Attention                              | native; lower_right, inputs 3 and 4 empty     |
| enginewright::EnginewrightCachedAttention       | plugin                                        |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from enginewright.builder.passes.canonical_linear import canonical_linear
from enginewright.builder.passes.dequantize_linear import HALVES, dequantize_linear
from enginewright.builder.passes.derive_positions import derive_positions
from enginewright.builder.passes.fold_rotary import fold_rotary
from enginewright.builder.passes.fuse_activation import fuse_activation
from enginewright.builder.passes.fuse_gelu import fuse_gelu
from enginewright.builder.passes.fuse_norm import fuse_norm
from enginewright.builder.passes.lower_native_attention import TENSORRT, lower_native_attention
from enginewright.builder.passes.lower_plugin_attention import PLUGIN_TYPE, lower_plugin_attention
from enginewright.builder.passes.match import declare
from enginewright.builder.passes.prune_logits import prune_logits
from enginewright.builder.passes.reduce_logits import reduce_logits
from enginewright.builder.passes.simplify import simplify
from enginewright.builder.passes.standard_ops import OPSET, standard_ops
from enginewright.builder.passes.to_half import to_half
from enginewright.plugins.attention.contract import ABI_VERSION, DOMAIN
from enginewright.runtime.errors import UnsupportedModelError

_LAYOUT = {"Reshape", "Transpose", "Split", "Slice", "Concat", "Squeeze", "Unsqueeze"}
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Tanh", "Relu", "Swish", "Gelu", "Cast"}
_NATIVE = {"RotaryEmbedding", "TensorScatter", "TRT_Attention"}
_PRODUCTS = {"Gather", "MatMul", "DequantizeLinear", "ReduceSum"}
_REDUCED = {"TopK", "Exp", "Log"}
_NORMS = {"RMSNormalization", "LayerNormalization"}
OPS = frozenset(
    {"Shape", "Range", PLUGIN_TYPE}
    | _LAYOUT
    | _ELEMENTWISE
    | _NATIVE
    | _PRODUCTS
    | _NORMS
    | _REDUCED
)
"""What a lowered graph may hold."""


def lower(
    model: ir.Model,
    *,
    precision: str,
    attention: Literal["native", "plugin"],
    max_context: int,
    kv_cache: str = "auto",
    block_size: int = 32,
    kv_scales: Mapping[str, NDArray[np.float32]] | None = None,
    top_logits: int = 0,
) -> None:
    """Rewrite the exported graph in place; weights stay lazy, one matrix at a time is computed.

    ``precision``: fp16, bf16, int8, int4, fp8 or nvfp4. ``max_context``: C, and the length of the
    rotary tables. ``kv_cache`` (auto, int8, fp8), ``block_size`` and ``kv_scales`` are the
    plugin's; ``kv_scales`` has the scale of each head [kv_heads] by the cache's name (k_cache.0,
    ...), is asked for with int8 and fp8, and says what a step of the stored number stands for.
    ``top_logits``: K of passes/reduce_logits.py; 0: logits alone.

    Raises UnsupportedModelError for what cannot be lowered: under native attention sliding windows
    below ``max_context``, soft caps and sinks. What heads the plugin's kernels take is not asked.
    """
    dtype = HALVES.get(precision, ir.DataType.FLOAT16)
    _canonicalize(model, max_context)
    to_half(model, dtype)
    if attention == "native":
        lower_native_attention(model, dtype, max_context)
    else:
        lower_plugin_attention(model, dtype, kv_cache, block_size, kv_scales or {})
    derive_positions(model)
    dequantize_linear(model, precision)
    if top_logits:
        reduce_logits(model, top_logits)
    _finish(model)


def _canonicalize(model: ir.Model, max_context: int) -> None:
    """One node for each thing that the exported graph means; all is float32 still."""
    simplify(model)
    canonical_linear(model)
    fuse_norm(model)
    fuse_activation(model)
    fuse_gelu(model)
    fold_rotary(model, positions=max_context, takes=lambda rotary_dim: True)
    simplify(model)
    prune_logits(model)
    standard_ops(model)


def _finish(model: ir.Model) -> None:
    """Merge what is equal, drop what nothing reads, and see that all is of the known kinds."""
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    # Tracing leaves stack traces on nodes, which name folders of this machine.
    common.ClearMetadataAndDocStringPass()(model)
    model.graph.opset_imports.clear()
    model.graph.opset_imports.update({"": OPSET, TENSORRT: 1, DOMAIN: ABI_VERSION})
    for node in model.graph:
        for output in node.outputs:
            if output.dtype is None:  # of sizes, or of what only changes its layout
                first = node.inputs[0] if node.op_type != "Shape" else None
                declare(output, ir.DataType.INT64 if first is None else first.dtype)
        if node.op_type not in OPS:
            raise UnsupportedModelError(
                f"the model has an operation {node.op_type} ({node.name}) that is not lowered for "
                f"TensorRT; build it with target: cpu"
            )
