"""What the interpreter refuses, what it keeps, what it writes in place."""

from __future__ import annotations

import weakref

import numpy as np
import onnx_ir as ir
import pytest
import torch

from enginewright.builder.interpreter.errors import GraphError
from enginewright.builder.interpreter.interpreter import Interpreter
from enginewright.builder.interpreter.ops import OPS
from enginewright.builder.targets.tensorrt import lowering
from enginewright.runtime.errors import BuildError


def _input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    value.const_value = tensor
    return value


def _model(inputs, nodes, outputs, constants=()) -> ir.Model:
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=constants, opset_imports={"": 24}, name="g"
    )
    return ir.Model(graph, ir_version=11)


def test_an_unknown_op_is_named_before_anything_runs(node_model):
    model = node_model("Hardmax", [torch.zeros(2)], {})
    with pytest.raises(GraphError, match="does not know the ops Hardmax"):
        Interpreter(model)
    model = node_model("Sparkle", [torch.zeros(2)], {}, domain="vendor")
    with pytest.raises(GraphError, match="vendor::Sparkle"):
        Interpreter(model)
    assert issubclass(GraphError, BuildError)


def test_every_op_that_a_graph_for_tensorrt_may_hold_is_known():
    known = {op_type for _, op_type in OPS}
    assert not lowering.OPS - known


@pytest.mark.parametrize("op", ["Add", "Mul", "MatMul", "Pow", "Concat", "Max"])
def test_types_that_differ_are_an_error(op, run_node):
    half, single = torch.ones(4, 4, dtype=torch.float16), torch.ones(4, 4)
    with pytest.raises(GraphError, match=rf"\({op}\): input 0 is float16, input 1 is float;"):
        run_node(op, [half, single], {"axis": 0} if op == "Concat" else {})


def test_a_type_that_the_op_does_not_take_is_an_error(run_node):
    with pytest.raises(GraphError, match=r"\(Sqrt\): input 0 is int64; legal: bfloat16, double"):
        run_node("Sqrt", [torch.ones(3, dtype=torch.int64)])


def test_half_tables_beside_a_bfloat16_query_are_an_error(run_node):
    x, table = torch.ones(1, 1, 2, 4, dtype=torch.bfloat16), torch.ones(1, 2, 2)
    with pytest.raises(GraphError, match="nothing is converted on the way"):
        run_node("RotaryEmbedding", [x, table, table])


def test_what_torch_cannot_do_names_the_node(run_node):
    with pytest.raises(GraphError, match=r"\(MatMul\):.*\[2, 3\].*\[2, 3\]"):
        run_node("MatMul", [torch.ones(2, 3), torch.ones(2, 3)])


def test_inputs_are_held_to_what_the_graph_declares():
    a, b = _input("a", ir.DataType.FLOAT, ["B", 4]), _input("b", ir.DataType.FLOAT, ["B", 4])
    node = ir.node("Add", [a, b])
    node.outputs[0].name = "y"
    interpreter = Interpreter(_model([a, b], [node], node.outputs))
    good = {"a": torch.ones(2, 4), "b": torch.ones(2, 4)}
    assert interpreter.run(good)["y"].shape == (2, 4)
    for change, message in (
        ({"a": torch.ones(2, 5)}, r"a is declared \['B', 4\], \[2, 5\] is given"),
        ({"b": torch.ones(3, 4)}, r"b is declared \['B', 4\], \[3, 4\] is given where {'B': 2}"),
        ({"a": torch.ones(2, 4).half()}, "a is declared .*FLOAT.*float16 is given"),
        ({"c": torch.ones(1)}, r"\['a', 'b'\] are declared, \['a', 'b', 'c'\] are given"),
    ):
        with pytest.raises(GraphError, match=message):
            interpreter.run({**good, **change})


def test_an_output_of_another_type_than_declared_is_an_error(node_model):
    model = node_model("Neg", [torch.ones(2)], {})
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    with pytest.raises(GraphError, match="output y0 is declared FLOAT16"):
        Interpreter(model).run({"x0": torch.ones(2)})


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_weights_in_few_bits_give_the_same_with_and_without_room(keep_bytes):
    """DequantizeLinear, Transpose and MatMul, computed at each step or kept."""
    rng = np.random.default_rng(1)
    x = _input("x", ir.DataType.FLOAT16, ["S", 8])
    codes = rng.integers(-128, 128, (5, 8)).astype(np.int8)
    scales = rng.random(5).astype(np.float16)
    constants = [_constant("codes", codes), _constant("scales", scales)]
    weight = ir.node("DequantizeLinear", constants, {"axis": 0})
    turned = ir.node("Transpose", weight.outputs, {"perm": [1, 0]})
    product = ir.node("MatMul", [x, turned.outputs[0]])
    product.outputs[0].name = "y"
    nodes = [weight, turned, product]
    interpreter = Interpreter(_model([x], nodes, product.outputs, constants), keep_bytes=keep_bytes)
    values = rng.normal(size=(3, 8)).astype(np.float16)
    dequantized = (codes * scales[:, None].astype(np.float32)).astype(np.float16)
    wanted = (values.astype(np.float32) @ dequantized.T.astype(np.float32)).astype(np.float16)
    for _ in range(2):
        found = interpreter.run({"x": torch.from_numpy(values)})["y"]
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3)


def test_a_value_is_freed_after_its_last_use(monkeypatch):
    made: list[weakref.ref[torch.Tensor]] = []
    alive = []

    def neg(call, x):
        alive.append([ref() is not None for ref in made])
        y = -x
        made.append(weakref.ref(y))
        return y

    monkeypatch.setitem(OPS, ("", "Neg"), neg)
    x = _input("x", ir.DataType.FLOAT, [4])
    nodes, value = [], x
    for _ in range(4):
        nodes.append(ir.node("Neg", [value]))
        value = nodes[-1].outputs[0]
    value.name = "y"
    Interpreter(_model([x], nodes, [value])).run({"x": torch.ones(4)})
    assert alive == [[], [True], [False, True], [False, False, True]]


def _scatter_model(*, read_twice: bool) -> ir.Model:
    cache = _input("k_cache.0", ir.DataType.FLOAT, ["B", 1, 8, 2])
    new = _input("new", ir.DataType.FLOAT, ["B", 1, "S", 2])
    at = _input("at", ir.DataType.INT64, ["B"])
    scatter = ir.node("TensorScatter", [cache, new, at], {"axis": 2})
    scatter.outputs[0].name = "k_cache.0.out"
    nodes, outputs = [scatter], list(scatter.outputs)
    if read_twice:
        old = ir.node("Neg", [cache])
        old.outputs[0].name = "old"
        nodes, outputs = [*nodes, old], [*outputs, old.outputs[0]]
    return _model([cache, new, at], nodes, outputs)


def test_an_aliased_cache_is_written_in_place():
    cache = torch.zeros(2, 1, 8, 2)
    feeds = {"k_cache.0": cache, "new": torch.ones(2, 1, 1, 2), "at": torch.tensor([3, 5])}
    out = Interpreter(_scatter_model(read_twice=False)).run(feeds)["k_cache.0.out"]
    assert out.data_ptr() == cache.data_ptr()
    assert cache.nonzero()[:, [0, 2]].tolist() == [[0, 3], [0, 3], [1, 5], [1, 5]]


def test_a_cache_that_something_else_reads_is_not_written_over():
    cache = torch.zeros(2, 1, 8, 2)
    feeds = {"k_cache.0": cache, "new": torch.ones(2, 1, 1, 2), "at": torch.tensor([3, 5])}
    outputs = Interpreter(_scatter_model(read_twice=True)).run(feeds)
    assert not cache.any()
    assert not outputs["old"].any()
    assert outputs["k_cache.0.out"].sum() == 4
