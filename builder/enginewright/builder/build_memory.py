"""How much memory a build takes of the host at its peak, before it runs: anonymous memory, bytes.

Weights are read as they are written and files are mapped, so the peak is in the stages that run a
model: the reference holds the model in float32 and some of its logits; conformance holds what ONNX
Runtime packs anew, and logits of a whole window; a graph that is interpreted holds its weights in
float32, and what it rounds. TensorRT compiles in a process of its own, beside the build's. The
figures were measured on models of 0.1 and 135 million parameters, and for GPUs on the latter alone.
"""

from __future__ import annotations

from collections.abc import Set

from enginewright.builder.parameters import Architecture

_WINDOW = 512
"""Tokens of the text whose logits are held."""
_IMPORTED = 315_000_000
"""PyTorch, transformers and ONNX, imported."""
_EXPORTER = 64_000_000
"""What tracing imports beside, and keeps."""
_TRACED_LAYER, _LOADED_LAYER = 2_200_000, 250_000
"""A layer of the graph, as tracing leaves it or as the cache has it."""
_TOKEN = 1_450
"""Of the tokenizer, a token."""
_REFERENCE_LOGITS = 2.2
_CONFORMANCE = 14_000_000
_CONFORMANCE_LOGITS = 5.95
_PACKED = 0.68
_INTERPRETED = 3.3
_COMPILER, _COMPILER_BASE = 4.0, 200_000_000
"""TensorRT's process: times the engine's bytes, and at least."""


def host_peak(
    architecture: Architecture, target: str, weights: int, engine: int, held: Set[str]
) -> int:
    """Bytes at the peak of a build; ``held``: those of export and reference that the cache has."""
    float32 = 4 * architecture.count
    logits = 4 * _WINDOW * architecture.vocab_size
    traced = "export" not in held
    graph = architecture.layers * (_TRACED_LAYER if traced else _LOADED_LAYER)
    base = _IMPORTED + _EXPORTER * traced + graph + _TOKEN * architecture.vocab_size
    peaks = [] if "reference" in held else [float32 + _REFERENCE_LOGITS * logits]
    if target == "cpu":
        peaks.append(_CONFORMANCE + _PACKED * weights + _CONFORMANCE_LOGITS * logits)
    else:
        peaks.append(_INTERPRETED * float32)
    if target in ("tensorrt", "tensorrt_rtx"):
        peaks.append(_COMPILER_BASE + _COMPILER * engine)
    return int(base + max(peaks))
