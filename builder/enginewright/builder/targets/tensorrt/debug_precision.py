"""Layer by layer: the lowered graph in TensorRT and in ONNX Runtime, compared by Polygraphy.

Both run a copy of the graph in which TensorRT's own attention node is ONNX's, with a mask; what
each product, norm and attention gives is an output of the copy. Marking outputs keeps TensorRT from
fusing across them, so a difference that fusion makes is not seen here.

| input                | shape               | fed                         |
|----------------------|---------------------|-----------------------------|
| input_ids            | [1, S]              | tokens of the text          |
| past_lengths         | [1]                 | 0                           |
| logits_index         | [S]                 | 0, 1, ... S - 1             |
| k_cache.i, v_cache.i | [1, kv_heads, C, D] | zeros                       |
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.builder.passes.match import constant_value, declare, insert_before, replace
from enginewright.builder.passes.reduce_logits import OUTPUTS as REDUCED
from enginewright.builder.targets.external_data import WeightsFile
from enginewright.runtime.errors import BuildError, MissingDependencyError, RecipeError

_SHOWN = ("MatMul", "Attention", "RMSNormalization", "LayerNormalization")
_NOT_IN_ONNX_RUNTIME = ("bf16", "nvfp4")
_TOLERANCE = 0.02
"""Of the largest magnitude in a tensor."""


def check(precision: str, attention: str) -> None:
    """Raise RecipeError for a graph that ONNX Runtime does not run on the CPU,
    MissingDependencyError unless it and Polygraphy are installed.
    """
    if precision in _NOT_IN_ONNX_RUNTIME or attention == "plugin":
        what = "attention plugin" if attention == "plugin" else precision
        raise RecipeError(
            f"--debug-precision: ONNX Runtime, which layers are compared with, has no {what} on "
            f"the CPU; build with attention: native and one of fp16, int8, int4, fp8"
        )
    missing = [n for n in ("polygraphy", "onnxruntime") if importlib.util.find_spec(n) is None]
    if missing:
        raise MissingDependencyError(
            f"--debug-precision needs {' and '.join(missing)}: "
            f"pip install 'enginewright[debug,cpu]'"
        )


def portable(model: ir.Model) -> None:
    """Make of the lowered graph, in place, what ONNX Runtime and TensorRT both run and show."""
    graph = model.graph
    for value in [value for value in graph.outputs if value.name in REDUCED]:
        graph.outputs.remove(value)  # of equal logits, either may come first
    for node in [node for node in graph if node.op_type == "TRT_Attention"]:
        _lower_attention(graph, node)
    for node in graph:
        shown = node.outputs[0]
        if node.op_type in _SHOWN and not shown.is_graph_output():
            graph.outputs.append(shown)


def save(model: ir.Model, folder: Path) -> Path:
    """Write the graph with its weights beside it; the graph's file."""
    folder.mkdir(parents=True, exist_ok=True)
    with WeightsFile(folder / "weights.bin") as weights:
        weights.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


def feed(model: ir.Model, token_ids: Sequence[int]) -> dict[str, NDArray[Any]]:
    """The inputs; see the module's table."""
    found: dict[str, NDArray[Any]] = {
        "input_ids": np.array([token_ids], np.int64),
        "past_lengths": np.zeros(1, np.int32),
        "logits_index": np.arange(len(token_ids)),
    }
    for value in model.graph.inputs:
        if value.name not in found:
            assert value.name is not None
            assert value.shape is not None
            assert value.dtype is not None
            _, *rest = value.shape
            found[value.name] = np.zeros((1, *map(int, rest)), value.dtype.numpy())  # type: ignore[arg-type]
    return found


def compare_in_tensorrt(graph_file: Path, inputs: Mapping[str, NDArray[Any]]) -> str:
    """Run both, and say where they first differ. Raises BuildError where one does not run."""
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineFromNetwork,
        NetworkFromOnnxPath,
        Profile,
        TrtRunner,
    )

    profile = Profile()
    for name, value in inputs.items():
        profile.add(name, value.shape, value.shape, value.shape)
    network = NetworkFromOnnxPath(str(graph_file), strongly_typed=True)
    engine = EngineFromNetwork(network, CreateConfig(profiles=[profile]))
    return compare((OnnxrtRunner(session(graph_file)), TrtRunner(engine)), inputs)


def session(graph_file: Path) -> Any:
    """ONNX Runtime as the graph says: fused, it would round activations of quantized products."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # it warns that caches are copied, which is no matter here
    return onnxruntime.InferenceSession(str(graph_file), options)


def compare(runners: Sequence[Any], inputs: Mapping[str, NDArray[Any]]) -> str:
    """A line for each tensor that two of Polygraphy's runners give, in the order of the graph."""
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException

    try:
        results = Comparator.run(list(runners), data_loader=[dict(inputs)])
    except PolygraphyException as error:
        raise BuildError(f"--debug-precision: Polygraphy cannot run the graph: {error}") from error
    (_, (first,)), (_, (second,)) = results.items()
    return table({name: (np.asarray(first[name]), np.asarray(second[name])) for name in first})


def table(pairs: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> str:
    """The largest difference of each pair, relative to the largest magnitude of the first."""
    lines, beyond = [], []
    for name, (first, second) in pairs.items():
        wanted, found = first.astype(np.float64), second.astype(np.float64)
        scale = max(np.abs(wanted).max(), 1e-30)
        difference = float(np.abs(wanted - found).max() / scale)
        agrees = difference <= _TOLERANCE  # not so for a difference that is no number
        beyond += [] if agrees else [name]
        lines.append(f"{difference:10.2e}  {'' if agrees else 'OFF':3}  {name}")
    said = f"first tensor off: {beyond[0]}" if beyond else "no tensor is off"
    return "\n".join([f"{said} (more than {_TOLERANCE:g} of its largest)", *lines])


def _lower_attention(graph: ir.Graph, node: ir.Node) -> None:
    """TRT_Attention(q, k, v, kv_lengths) -> Attention(q, k, v, mask [B, 1, S, C]).

    Query s of row b sees positions up to kv_lengths[b] - S + s.
    """
    query, keys, values, lengths = (node.inputs[at] for at in (0, 1, 2, 5))
    assert query is not None
    assert keys is not None
    assert keys.shape is not None
    capacity = keys.shape[2]
    assert isinstance(capacity, int)
    numbers: dict[str, NDArray[Any]] = {
        "debug.positions": np.arange(capacity, dtype=np.int32).reshape(1, 1, 1, capacity),
        "debug.start": np.array(0, np.int64),
        "debug.step": np.array(1, np.int64),
        "debug.scalar": np.array([], np.int64),
        "debug.rows": np.array([-1, 1, 1, 1], np.int64),
        "debug.queries": np.array([1, 1, -1, 1], np.int64),
    }
    named = {name: constant_value(graph, name, array) for name, array in numbers.items()}
    made: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        made.append(ir.node(op, list(inputs), attributes))
        return made[-1].outputs[0]

    length = add("Reshape", add("Shape", query, start=2, end=3), named["debug.scalar"])
    steps = add("Range", named["debug.start"], length, named["debug.step"])
    behind = add("Sub", steps, length)
    offsets = add(
        "Reshape", add("Cast", behind, to=ir.DataType.INT32.value), named["debug.queries"]
    )
    last = add("Add", add("Reshape", lengths, named["debug.rows"]), offsets)
    mask = add("LessOrEqual", named["debug.positions"], last)
    out = add("Attention", query, keys, values, mask, scale=1.0)
    declare(out, node.outputs[0].dtype, node.outputs[0].shape)
    insert_before(node, made)
    replace(node.outputs, [out])
    graph.remove(node, safe=True)
