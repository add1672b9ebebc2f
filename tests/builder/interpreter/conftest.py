"""Graphs of one node, and whole lowered models, run by the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from enginewright.builder.export import CacheShape, Exported, attach_weights, export
from enginewright.builder.families import family_of
from enginewright.builder.interpreter.engine import InterpretedEngine
from enginewright.builder.interpreter.interpreter import Interpreter
from enginewright.builder.interpreter.tensors import TORCH_TYPES, to_torch
from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source import open_source
from enginewright.builder.targets.entries import vocab_size
from enginewright.builder.targets.tensorrt.lowering import lower
from enginewright.runtime.artifact.manifest import EngineEntry, KVEntry, LimitsEntry, StepsEntry

RunNode = Callable[..., list[Tensor]]
OPSET = 24
_ONNX_TYPES = {kind: dtype for dtype, kind in reversed(TORCH_TYPES.items())}


@pytest.fixture
def node_model() -> Callable[..., ir.Model]:
    """``node_model(op_type, operands, attributes, domain="", outputs=1)``.

    An operand is a Tensor (an input of the graph, x0, x1, ...), an ONNX tensor (a constant), or
    None (left out).
    """
    return _node_model


@pytest.fixture
def run_node() -> RunNode:
    """``run_node(op_type, operands, attributes={}, domain="", outputs=1) -> tensors``."""

    def run(op_type: str, operands: Any, attributes: Any = None, **how: Any) -> list[Tensor]:
        model = _node_model(op_type, operands, attributes or {}, **how)
        given = {f"x{at}": x for at, x in enumerate(operands) if isinstance(x, Tensor)}
        return list(Interpreter(model).run(given).values())

    return run


def _node_model(
    op_type: str,
    operands: list[Tensor | ir.TensorProtocol | None],
    attributes: Mapping[str, Any],
    domain: str = "",
    outputs: int = 1,
) -> ir.Model:
    values = [_value(f"x{at}", operand) for at, operand in enumerate(operands)]
    node = ir.node(op_type, values, attributes, domain=domain, num_outputs=outputs)
    for at, output in enumerate(node.outputs):
        output.name = f"y{at}"
    graph = ir.Graph(
        [value for value in values if value is not None and value.const_value is None],
        node.outputs,
        nodes=[node],
        initializers=[v for v in values if v is not None and v.const_value is not None],
        opset_imports={"": OPSET},
        name="one",
    )
    return ir.Model(graph, ir_version=11)


def _value(name: str, operand: Tensor | ir.TensorProtocol | None) -> ir.Value | None:
    if operand is None:
        return None
    if isinstance(operand, Tensor):
        kind, shape = _ONNX_TYPES[operand.dtype], ir.Shape(operand.shape)
        return ir.Value(name=name, type=ir.TensorType(kind), shape=shape)
    value = ir.Value(name=name, type=ir.TensorType(operand.dtype), shape=operand.shape)
    operand.name = name
    value.const_value = operand
    return value


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def as_onnx() -> Callable[[np.ndarray, ir.DataType], ir.TensorProtocol]:
    """``as_onnx(array, dtype)``: float values, all of them of that type, as a constant of it."""

    def constant(array: np.ndarray, dtype: ir.DataType) -> ir.TensorProtocol:
        tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name="constant")
        assert torch.equal(to_torch(tensor).float(), torch.from_numpy(array.astype(np.float32)))
        return tensor

    return constant


CONTEXT, ROWS, BLOCK = 96, 24, 8
"""What the engines of ``make_engine`` hold."""
_STEPS = {"native": StepsEntry(ROWS, ROWS, 1), "plugin": StepsEntry(ROWS, ROWS, ROWS)}
_LARGEST = {"int8": 8 / 127, "fp8": 8 / 448}
"""Scales with which no key or value of a tiny model is beyond the last code."""


@pytest.fixture(scope="session")
def make_engine(make_graph) -> Callable[..., InterpretedEngine]:
    """``make_engine(checkpoint, precision, attention, kv_cache="auto") -> InterpretedEngine``."""

    def make(*what: Any, **how: Any) -> InterpretedEngine:
        return InterpretedEngine(*make_graph(*what, **how))

    return make


@pytest.fixture(scope="session")
def make_graph() -> Callable[..., tuple[ir.Model, EngineEntry]]:
    """``make_graph(checkpoint, precision, attention, kv_cache="auto", max_context=96,
    top_logits=0)``.

    What the TensorRT targets lower the checkpoint to; each checkpoint is traced once.
    """
    traced: dict[Path, tuple[Any, Exported]] = {}

    def make(
        checkpoint: Path,
        precision: str,
        attention: str,
        kv_cache: str = "auto",
        max_context: int = CONTEXT,
        top_logits: int = 0,
    ) -> tuple[ir.Model, EngineEntry]:
        source = open_source(SourceSpec(path=checkpoint))
        if checkpoint not in traced:
            exported = export(source.model_config(), family_of(source.architecture))
            traced[checkpoint] = ir.to_proto(exported.model), exported
        proto, exported = traced[checkpoint]
        model = attach_weights(replace(exported, model=ir.from_proto(proto)), source.weight)
        cache = exported.caches[0]
        scale = np.full(cache.kv_heads, _LARGEST.get(kv_cache, 1), np.float32)
        names = [f"{kind}_cache.{layer}" for layer in range(len(exported.caches)) for kind in "kv"]
        lower(
            model,
            precision=precision,
            attention=attention,
            max_context=max_context,
            kv_cache=kv_cache,
            block_size=BLOCK,
            kv_scales=dict.fromkeys(names, scale),
            top_logits=top_logits,
        )
        limits = LimitsEntry(max_context, ROWS)
        return model, _entry(model, precision, attention, cache, limits)

    return make


def _entry(
    model: ir.Model, precision: str, attention: str, cache: CacheShape, limits: LimitsEntry
) -> EngineEntry:
    pools = [value for value in model.graph.inputs if (value.name or "").startswith("k_cache.")]
    assert pools[0].dtype is not None
    paged = attention == "plugin"
    return EngineEntry(
        target="tensorrt_rtx",
        plan=attention,
        precision=precision,
        fingerprint="",
        model="engine.rtx",
        files=("engine.rtx",),
        io=(),
        vocab_size=vocab_size(model.graph),
        kv=KVEntry(
            "paged" if paged else "slots",
            len(pools),
            cache.kv_heads,
            cache.head_dim,
            pools[0].dtype.numpy().name,
            BLOCK if paged else 0,
        ),
        limits=limits,
        steps=_STEPS[attention],
        batch_invariant=False,
    )
