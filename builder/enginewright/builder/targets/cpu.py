"""Target ``cpu``: an ONNX Runtime model with its weights beside it, cache in slots."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from enginewright.builder.passes.canonical_linear import canonical_linear
from enginewright.builder.passes.derive_positions import derive_positions
from enginewright.builder.passes.fold_rotary import fold_rotary
from enginewright.builder.passes.fuse_activation import fuse_activation
from enginewright.builder.passes.fuse_norm import fuse_norm
from enginewright.builder.passes.fuse_skip import fuse_skip
from enginewright.builder.passes.lower_attention import lower_attention
from enginewright.builder.passes.pack_projections import pack_projections
from enginewright.builder.passes.prune_logits import prune_logits
from enginewright.builder.passes.quantize import quantize
from enginewright.builder.passes.simplify import simplify
from enginewright.builder.targets import CompileRequest, Target
from enginewright.builder.targets.external_data import save_model
from enginewright.runtime.manifest import EngineEntry, KVEntry, StepsEntry, TensorEntry

_MODEL = "engine/model.onnx"
_WEIGHTS = "engine/weights.bin"


class CpuTarget(Target):
    """ONNX Runtime's CPU provider; attention is GroupQueryAttention over slots."""

    def compile(self, model: ir.Model, request: CompileRequest) -> EngineEntry:
        lower(model, request.limits.max_context, request.caches[0].head_dim)
        quantize(model, request.precision)
        simplify(model)
        # Tracing leaves stack traces on nodes, which name folders of this machine.
        common.ClearMetadataAndDocStringPass()(model)
        (request.folder / "engine").mkdir()
        save_model(model, request.folder / _MODEL, request.folder / _WEIGHTS)
        return _describe(model, request)


def lower(model: ir.Model, max_context: int, head_dim: int) -> None:
    """Rewrite the exported graph for ONNX Runtime; Linear is left to the precision."""

    # The backend pads a prefill to an even width, so the tables have an even length too.
    def rotates(rotary_dim: int) -> bool:
        # What GroupQueryAttention asks of heads that it is to rotate.
        return head_dim % 16 == 0 and rotary_dim % 16 == 0

    simplify(model)
    canonical_linear(model)
    fuse_norm(model)
    fuse_activation(model)
    fold_rotary(model, positions=max_context + max_context % 2, takes=rotates)
    simplify(model)
    pack_projections(model)
    fuse_skip(model)
    prune_logits(model)
    derive_positions(model)
    lower_attention(model)
    simplify(model)


def _describe(model: ir.Model, request: CompileRequest) -> EngineEntry:
    graph, limits, cache = model.graph, request.limits, request.caches[0]
    vocab = (graph.outputs[0].shape or [None])[-1]
    assert isinstance(vocab, int)
    inputs = tuple(_tensor(value, "input") for value in graph.inputs)
    outputs = tuple(_tensor(value, "output") for value in graph.outputs)
    return EngineEntry(
        target="cpu",
        plan="default",
        precision=request.precision,
        fingerprint=_fingerprint(request.folder),
        model=_MODEL,
        files=(_MODEL, _WEIGHTS),
        io=inputs + outputs,
        vocab_size=vocab,
        kv=KVEntry("slots", len(request.caches), cache.kv_heads, cache.head_dim, "float32"),
        limits=limits,
        # GroupQueryAttention on the CPU refuses more than one row with S > 1 over a past.
        steps=StepsEntry(decode=limits.max_batch, prefill=limits.max_batch, extend=1),
        batch_invariant=_is_batch_invariant(graph),
    )


def _is_batch_invariant(graph: ir.Graph) -> bool:
    """Whether each row's products are rounded alike in any batch.

    Without VNNI, ONNX Runtime's 4-bit product over blocks above 16 sums a single row in another
    order than it does several: seen to differ by 3e-7, which the rounding of activations amplifies.
    """
    return not any(
        node.op_type == "MatMulNBits"
        and node.attributes["bits"].as_int() == 4
        and node.attributes["block_size"].as_int() > 16
        for node in graph
    )


def _tensor(value: ir.Value, direction: str) -> TensorEntry:
    assert value.shape is not None
    assert value.dtype is not None
    assert value.name is not None
    assert direction in ("input", "output")
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorEntry(value.name, direction, value.dtype.numpy().name, shape)  # type: ignore[arg-type]


def _fingerprint(folder: Path) -> str:
    total = hashlib.sha256()
    for name in (_MODEL, _WEIGHTS):
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{total.hexdigest()}"
