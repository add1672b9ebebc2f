"""Graphs from text, and running them before and after a pass in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime
import pytest

from enginewright.builder.weight_tensor import WeightTensor
from enginewright.builder.weights import ArrayWeight

_HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1, "enginewright" : 1]>'
_LINEAR = """
<domain: "enginewright", opset_import: ["" : 20]>
Linear (x, w) => (y) { t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t) }
"""
_LINEAR_BIAS = """
<domain: "enginewright", opset_import: ["" : 20]>
Linear (x, w, b) => (y) { t = Transpose <perm = [1, 0]> (w) p = MatMul (x, t) y = Add (p, b) }
"""

Arrays = Mapping[str, np.ndarray]


class Graph:
    """A small model whose named weights are lazy, as after attach_weights."""

    def __init__(self, text: str, weights: Arrays) -> None:
        self.model = ir.from_proto(onnx.parser.parse_model(_HEADER + text))
        common.ShapeInferencePass()(self.model)
        graph = self.model.graph
        for name, array in weights.items():
            value = next(v for v in graph.inputs if v.name == name)
            graph.inputs.remove(value)
            value.const_value = WeightTensor(ArrayWeight(array), name)
            graph.initializers.add(value)

    def ops(self) -> Counter[str]:
        return Counter(node.op_type for node in self.model.graph)

    def run(self, feeds: Arrays) -> list[np.ndarray]:
        proto = ir.to_proto(self.model)
        biased = any(node.op_type == "Linear" and len(node.input) == 3 for node in proto.graph.node)
        proto.functions.append(onnx.parser.parse_function(_LINEAR_BIAS if biased else _LINEAR))
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        wanted = {value.name for value in session.get_inputs()}
        return session.run(None, {name: x for name, x in feeds.items() if name in wanted})


@pytest.fixture
def graph() -> Callable[..., Graph]:
    def make(text: str, **weights: np.ndarray) -> Graph:
        return Graph(text, weights)

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
