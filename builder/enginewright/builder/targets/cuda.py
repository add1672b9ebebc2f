"""Target ``cuda``: one ONNX model for ONNX Runtime's CUDA provider, its weights beside it.

T is float16 or bfloat16; int4 computes in float16. C is max_context, the tokens of a slot.

| tensor                       | shape               | dtype   | meaning                          |
|------------------------------|---------------------|---------|----------------------------------|
| input_ids                    | [B, S]              | int64   | on the device, as all but this:  |
| total_length                 | []                  | int32   | on the host; S in a prefill      |
| past_lengths, new_lengths    | [B]                 | int32   | as in the step contract          |
| logits_index                 | [L]                 | int64   | as in the step contract          |
| k_cache.i, v_cache.i         | [B, kv_heads, C, D] | T       | the slots of the step's rows     |
| k_cache.i.out, v_cache.i.out | [B, kv_heads, C, D] | T       | the same memory                  |
| logits                       | [L, V]              | float32 |                                  |

``total_length`` is at least the longest of past + new, and at most C.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from enginewright.builder.passes.canonical_linear import canonical_linear
from enginewright.builder.passes.derive_positions import derive_positions
from enginewright.builder.passes.fold_rotary import fold_rotary
from enginewright.builder.passes.fuse_activation import fuse_activation
from enginewright.builder.passes.fuse_norm import fuse_norm
from enginewright.builder.passes.fuse_skip import fuse_skip
from enginewright.builder.passes.half_activations import half_activations
from enginewright.builder.passes.lower_attention import lower_attention
from enginewright.builder.passes.lower_block_linear import lower_block_linear
from enginewright.builder.passes.match import replace
from enginewright.builder.passes.pack_projections import pack_projections
from enginewright.builder.passes.prune_logits import prune_logits
from enginewright.builder.passes.quantize import head_of, quantize
from enginewright.builder.passes.simplify import simplify
from enginewright.builder.recorder import Recorder
from enginewright.builder.stage_inputs import tool_versions
from enginewright.builder.targets import CompileRequest, Target
from enginewright.builder.targets.entries import tensor_entries, vocab_size, with_fingerprints
from enginewright.builder.targets.external_data import WeightsFile
from enginewright.runtime.artifact.manifest import EngineEntry, KVEntry, NvidiaEntry, StepsEntry
from enginewright.runtime.errors import UnsupportedModelError

_MODEL = "engine/model.onnx"
_WEIGHTS = "engine/weights.bin"
_OLDEST = "1.31"
"""The ONNX Runtime whose operators the graph uses."""
_TYPES = {
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
    "int4": ir.DataType.FLOAT16,
}
_STEP_TOKENS = 4096
"""Positions of a step over prompts: the memory of its activations grows with them."""
_HOST_OPS = {"Shape", "Size", "Range", "NonZero"}
_CAPABILITY = {"fp16": "7.5", "bf16": "8.0", "int4": "7.5"}
"""The lowest that ONNX Runtime's wheels for CUDA 13 have machine code for; bfloat16 needs 8.0."""


class CudaTarget(Target):
    """ONNX Runtime's CUDA provider; attention is GroupQueryAttention over slots."""

    interpreted = True

    def lower(self, model: ir.Model, request: CompileRequest) -> None:
        lower(model, request.limits.max_context, request.caches[0].head_dim)
        _fix_capacity(model.graph, request.limits.max_context)
        quantize(model, "int4" if request.precision == "int4" else "fp32")
        lower_block_linear(model, whole_blocks=True)
        half_activations(model, _TYPES[request.precision])
        simplify(model)
        _check_device_only(model.graph)
        # Tracing leaves stack traces on nodes, which name folders of this machine.
        common.ClearMetadataAndDocStringPass()(model)

    def compile(self, model: ir.Model, request: CompileRequest) -> tuple[EngineEntry, ...]:
        recorder = Recorder(model)
        recorder.run(self.lower, model, request)
        recorder.write(request.folder)
        (request.folder / "engine").mkdir()
        with WeightsFile(request.folder / _WEIGHTS) as weights:
            weights.save(model, request.folder / _MODEL)
        return with_fingerprints((_describe(model, request),), request.folder)

    def tools(self, engines: tuple[EngineEntry, ...]) -> Mapping[str, str]:
        return tool_versions(("onnx-ir",))


def lower(model: ir.Model, max_context: int, head_dim: int) -> None:
    """Rewrite the exported graph in float32; Linear is left to the precision."""

    def rotates(rotary_dim: int) -> bool:
        # What GroupQueryAttention asks of heads that it is to rotate.
        return head_dim % 16 == 0 and rotary_dim % 16 == 0

    simplify(model)
    canonical_linear(model)
    fuse_norm(model)
    fuse_activation(model)
    fold_rotary(model, positions=max_context, takes=rotates)
    simplify(model)
    pack_projections(model)
    fuse_skip(model)
    prune_logits(model)
    derive_positions(model, counted=True)
    lower_attention(model, host_total=True)
    simplify(model)
    _widen_logits(model.graph)


def _widen_logits(graph: ir.Graph) -> None:
    """What follows the head is computed in float32, and so are the logits."""
    head = head_of(graph.outputs[0])
    assert head is not None
    product = head.outputs[0]
    wide = ir.node("Cast", [product], {"to": ir.DataType.FLOAT.value})
    graph.insert_after(head, wide)
    replace([product], wide.outputs)
    wide.replace_input_with(0, product)


def _fix_capacity(graph: ir.Graph, size: int) -> None:
    """Slots of one size: the caches' third axis."""
    for value in (*graph.inputs, *graph.outputs):
        if (value.name or "").startswith(("k_cache.", "v_cache.")):
            assert value.shape is not None
            rows, heads, _, head_dim = value.shape
            value.shape = ir.Shape([rows, heads, size, head_dim])


def _check_device_only(graph: ir.Graph) -> None:
    found = sorted({node.op_type for node in graph} & _HOST_OPS)
    if found:
        raise UnsupportedModelError(
            f"target cuda: the graph of this model computes sizes ({', '.join(found)}), which "
            f"ONNX Runtime does on the host, where a CUDA graph cannot wait for it; build it for "
            f"cpu"
        )


def _describe(model: ir.Model, request: CompileRequest) -> EngineEntry:
    graph, limits, cache = model.graph, request.limits, request.caches[0]
    layers = len(request.caches)
    caches = [f"{kind}_cache.{i}" for i in range(layers) for kind in "kv"]
    dtype = _TYPES[request.precision].numpy().name
    return EngineEntry(
        target="cuda",
        plan="cuda",
        precision=request.precision,
        fingerprint="",
        model=_MODEL,
        files=(_MODEL, _WEIGHTS),
        io=tensor_entries(graph),
        vocab_size=vocab_size(graph),
        kv=KVEntry("slots", layers, cache.kv_heads, cache.head_dim, dtype),
        limits=limits,
        # GroupQueryAttention refuses more than one row with S > 1 over a past.
        steps=StepsEntry(limits.max_batch, limits.max_batch, extend=1, tokens=_STEP_TOKENS),
        batch_invariant=False,
        nvidia=NvidiaEntry(
            library="onnxruntime",
            library_version=_OLDEST,
            capabilities=(_CAPABILITY[request.precision],),
            later=True,
            profiles=(),
            aliases={f"{name}.out": name for name in caches},
            plugins=(),
            weights_bytes=(request.folder / _WEIGHTS).stat().st_size,
        ),
    )
