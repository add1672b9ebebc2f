"""Target ``cpu``: ONNX Runtime models with their weights beside them, one a plan.

| plan   | attention           | linear layers              | cache                     | needs    |
|--------|---------------------|----------------------------|---------------------------|----------|
| native | CachedAttention     | BlockLinear; MatMul (fp32) | paged, of the recipe's    | C++ when |
|        |                     |                            | kv_cache                  | built    |
| plain  | GroupQueryAttention | MatMulNBits; MatMul (fp32) | slots, float32            | nothing  |

Between linear layers, native runs AddRMSNorm and SwiGLU where the model has what they compute, the
latter within BlockLinear if it can; after the last it runs TopLogits.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from enginewright.builder.passes.allow_bfloat16 import allow_bfloat16
from enginewright.builder.passes.canonical_linear import canonical_linear
from enginewright.builder.passes.derive_positions import derive_positions
from enginewright.builder.passes.fold_rotary import fold_rotary
from enginewright.builder.passes.fuse_activation import fuse_activation
from enginewright.builder.passes.fuse_norm import fuse_norm
from enginewright.builder.passes.fuse_skip import fuse_skip
from enginewright.builder.passes.lower_attention import lower_attention
from enginewright.builder.passes.lower_block_linear import lower_block_linear
from enginewright.builder.passes.lower_paged_attention import lower_paged_attention
from enginewright.builder.passes.lower_row_ops import lower_row_ops
from enginewright.builder.passes.lower_top_logits import lower_top_logits
from enginewright.builder.passes.pack_projections import pack_projections
from enginewright.builder.passes.prune_logits import prune_logits
from enginewright.builder.passes.quantize import quantize
from enginewright.builder.passes.share_tables import share_tables
from enginewright.builder.passes.simplify import simplify
from enginewright.builder.recorder import Recorder
from enginewright.builder.stage_inputs import tool_versions
from enginewright.builder.targets import CompileRequest, Target, operators
from enginewright.builder.targets.entries import tensor_entries, vocab_size, with_fingerprints
from enginewright.builder.targets.external_data import WeightsFile
from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.manifest import EngineEntry, KVEntry, StepsEntry
from enginewright.runtime.artifact.native_code import this_platform

logger = logging.getLogger(__name__)

_NATIVE = "engine/native.onnx"
_PLAIN = "engine/plain.onnx"
_WEIGHTS = "engine/weights.bin"


_LARGEST_HEAD = 256
"""Of what our attention takes."""


class CpuTarget(Target):
    """ONNX Runtime's CPU provider; the plans are in the module's table.

    "native" runs the library of our operators; "plain" what ONNX Runtime has itself, over the same
    weights, for machines where no foreign code may run or the library does not. Where no compiler
    is at hand there is "plain" alone.
    """

    def prepare(self) -> None:
        _ = self._operators

    def inputs(self, request: CompileRequest) -> dict[str, str]:
        library = self._library(request)
        return {"operators": "none" if library is None else sha256_file(library)}

    def compile(self, model: ir.Model, request: CompileRequest) -> tuple[EngineEntry, ...]:
        recorder = Recorder(model)
        lower(model, request.limits.max_context, request.caches[0].head_dim, recorder)
        recorder.run(quantize, model, request.precision, recorder.stored)
        (request.folder / "engine").mkdir()
        entries = []
        with WeightsFile(request.folder / _WEIGHTS) as weights:
            library = self._copy_library(request)
            if library is not None:
                native, kv = model.clone(), _paged(request)
                paged = (kv.dtype, kv.block_size, request.kv_scales)
                recorder.run(lower_paged_attention, native, *paged, plan="native")
                if request.precision == "int4":  # is further from the model than bfloat16
                    recorder.run(allow_bfloat16, native, plan="native")
                recorder.run(lower_row_ops, native, plan="native")
                recorder.run(lower_top_logits, native, plan="native")
                recorder.run(share_tables, native, plan="native")
                recorder.run(simplify, native, plan="native")
                _save(native, weights, request.folder / _NATIVE)
                entries.append(_describe(native, request, "native", kv, library))
            recorder.run(lower_attention, model, plan="plain")
            recorder.run(lower_block_linear, model, plan="plain")
            recorder.run(simplify, model, plan="plain")
            _save(model, weights, request.folder / _PLAIN)
        recorder.write(request.folder)
        entries.append(_describe(model, request, "plain", _slots(request), None))
        return with_fingerprints(tuple(entries), request.folder)

    def tools(self, engines: tuple[EngineEntry, ...]) -> Mapping[str, str]:
        versions = tool_versions(("onnxruntime",))
        compiler = operators.library_compiler()
        if compiler is not None and any(engine.library for engine in engines):
            versions["c++"] = compiler
        return versions

    def _library(self, request: CompileRequest) -> Path | None:
        """The operators' library; None where it is of no use, or cannot be made."""
        return None if request.caches[0].head_dim > _LARGEST_HEAD else self._operators

    @cached_property
    def _operators(self) -> Path | None:
        try:
            return operators.compile_library()
        except operators.CompilerError as error:
            logger.warning("%s\nthe artifact has no native plan, and decodes slower", error)
            return None

    def _copy_library(self, request: CompileRequest) -> str | None:
        """Put the library into the artifact; its name there."""
        made = self._library(request)
        if made is None:
            return None
        relative = f"engine/{made.name}"
        shutil.copyfile(made, request.folder / relative)
        return relative


def _save(model: ir.Model, weights: WeightsFile, graph_file: Path) -> None:
    # Tracing leaves stack traces on nodes, which name folders of this machine.
    common.ClearMetadataAndDocStringPass()(model)
    weights.save(model, graph_file)


def lower(model: ir.Model, max_context: int, head_dim: int, recorder: Recorder) -> None:
    """Rewrite the exported graph for ONNX Runtime; Linear is left to the precision, attention to
    the plan."""

    # The backend pads a prefill to an even width, so the tables have an even length too.
    def rotates(rotary_dim: int) -> bool:
        # What GroupQueryAttention asks of heads that it is to rotate.
        return head_dim % 16 == 0 and rotary_dim % 16 == 0

    run = recorder.run
    run(simplify, model)
    run(canonical_linear, model)
    run(fuse_norm, model)
    run(fuse_activation, model)
    run(fold_rotary, model, positions=max_context + max_context % 2, takes=rotates)
    run(simplify, model)
    run(pack_projections, model)
    run(fuse_skip, model)
    run(prune_logits, model)
    run(derive_positions, model)
    run(simplify, model)


def _paged(request: CompileRequest) -> KVEntry:
    """The cache of the native plan."""
    by_itself = "float32" if request.precision == "fp32" else "float16"
    dtype = by_itself if request.kv_dtype == "auto" else request.kv_dtype
    layers, cache = len(request.caches), request.caches[0]
    return KVEntry("paged", layers, cache.kv_heads, cache.head_dim, dtype, request.block_size)


def _slots(request: CompileRequest) -> KVEntry:
    """The cache of the plain plan."""
    cache = request.caches[0]
    return KVEntry("slots", len(request.caches), cache.kv_heads, cache.head_dim, "float32")


def _describe(
    model: ir.Model, request: CompileRequest, plan: str, kv: KVEntry, library: str | None
) -> EngineEntry:
    limits, graph_file = request.limits, f"engine/{plan}.onnx"
    # GroupQueryAttention on the CPU refuses more than one row with S > 1 over a past.
    extend = 1 if kv.layout == "slots" else limits.max_batch
    return EngineEntry(
        target="cpu",
        plan=plan,
        precision=request.precision,
        fingerprint="",
        model=graph_file,
        files=(graph_file, _WEIGHTS, *([] if library is None else [library])),
        io=tensor_entries(model.graph),
        vocab_size=vocab_size(model.graph),
        kv=kv,
        limits=limits,
        steps=StepsEntry(decode=limits.max_batch, prefill=limits.max_batch, extend=extend),
        batch_invariant=True,
        library=library,
        platform=None if library is None else this_platform(),
    )
