"""Runs a lowered graph, the very one that a compiler is given, on torch tensors on the CPU.

Every tensor has the type that the graph gives it, and is rounded where the graph rounds; products
and sums over an axis are float32 within one op, as they are in the accumulators of a GPU. What
depends on constants alone is computed once. A value is freed after its last use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from enginewright.builder.interpreter.call import Call, Room, Widened
from enginewright.builder.interpreter.errors import GraphError
from enginewright.builder.interpreter.ops import OPS
from enginewright.builder.interpreter.tensors import to_torch, torch_type
from enginewright.builder.interpreter.typing_rules import check_types

_ALIASES = {
    "TensorScatter": {0: 0},
    "EnginewrightCachedAttention": {1: 3, 2: 4},
    "GroupQueryAttention": {1: 3, 2: 4},
}
"""Of ops that write a cache: the input that each output is written over."""


@dataclass(frozen=True)
class _Prepared:
    """A call, and the values that nobody reads after it."""

    call: Call
    dead: tuple[ir.Value, ...]


class Interpreter:
    """A graph, ready to run.

    ``keep_bytes``: memory for what is computed once of the constants (weights dequantized, and
    widened to float32 for products); by default half of what the machine has free.

    A graph input whose only reader writes it as a cache, and whose new content is the graph output
    of the same name with ".out", is written in place.

    Raises GraphError where the graph has an op that is not known.
    """

    def __init__(self, model: ir.Model, *, keep_bytes: int | None = None) -> None:
        self._graph = model.graph
        self._opset = model.graph.opset_imports.get("", 0)
        self._room = Room(_half_of_free_memory() if keep_bytes is None else keep_bytes)
        self._types_checked = False
        _check_known(model.graph)
        self._constants = {
            value: to_torch(value.const_value)
            for value in model.graph.initializers.values()
            if value.const_value is not None and value.uses()
        }
        self._prepared = self._prepare()

    @property
    def inputs(self) -> Sequence[ir.Value]:
        """The graph's inputs."""
        return self._graph.inputs

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name. Raises GraphError for wrong inputs, or types on the way."""
        _check_inputs(self._graph.inputs, inputs)
        values = {value: inputs[str(value.name)] for value in self._graph.inputs}
        for prepared in self._prepared:
            node = prepared.call.node
            results = self._call(prepared.call, values)
            values.update(zip(node.outputs, results, strict=False))
            for dead in prepared.dead:
                values.pop(dead, None)
        self._types_checked = True
        return {str(value.name): self._output(value, values) for value in self._graph.outputs}

    def _call(self, call: Call, values: Mapping[ir.Value, Tensor]) -> Sequence[Tensor]:
        operands = [None if v is None else self._find(v, values) for v in call.node.inputs]
        if not self._types_checked:
            check_types(call, operands, self._opset)
        try:
            return call(operands)
        except (RuntimeError, TypeError, IndexError) as error:
            shapes = [None if x is None else (x.dtype, list(x.shape)) for x in operands]
            raise call.error(f"{error}; operands: {shapes}") from error

    def _find(self, value: ir.Value, values: Mapping[ir.Value, Tensor]) -> Tensor:
        return self._constants[value] if value in self._constants else values[value]

    def _output(self, value: ir.Value, values: Mapping[ir.Value, Tensor]) -> Tensor:
        found = self._find(value, values)
        if value.dtype is not None and found.dtype != torch_type(value.dtype):
            raise GraphError(
                f"output {value.name} is declared {value.dtype.name}, its node gives {found.dtype}"
            )
        return found

    @torch.inference_mode()
    def _prepare(self) -> list[_Prepared]:
        """The calls that depend on inputs; the others are made here and their results kept."""
        widened = Widened(self._room)
        calls = []
        for node in self._graph:
            constant = tuple(value is None or value in self._constants for value in node.inputs)
            aliases = self._aliases(node)
            op = OPS[node.domain, node.op_type]
            call = Call(node, op, _attributes(node), constant, aliases, widened)
            if not all(constant) or not self._keep(call):
                calls.append(call)
        self._drop_unread(calls)
        last = {value: call for call in calls for value in call.node.inputs if value is not None}
        kept = set(self._graph.outputs)
        dead: dict[int, list[ir.Value]] = {}
        for value, call in last.items():
            if value not in kept and value not in self._constants:
                dead.setdefault(id(call), []).append(value)
        return [_Prepared(call, tuple(dead.get(id(call), ()))) for call in calls]

    def _keep(self, call: Call) -> bool:
        """Compute the results of a call of constants now; False where there is no room for them."""
        results = self._call(call, {})
        views = {x.untyped_storage().data_ptr() for x in self._constants.values()}
        fresh = [x for x in results if x.untyped_storage().data_ptr() not in views]
        if not self._room.take(sum(x.nbytes for x in fresh)):
            return False
        self._constants.update(zip(call.node.outputs, results, strict=False))
        return True

    def _drop_unread(self, calls: Sequence[Call]) -> None:
        """Forget constants that only other constants were made of."""
        read = {value for call in calls for value in call.node.inputs} | set(self._graph.outputs)
        self._constants = {value: x for value, x in self._constants.items() if value in read}

    def _aliases(self, node: ir.Node) -> frozenset[int]:
        """Inputs of the node whose memory is that of an output of the graph."""
        outputs = {value: str(value.name) for value in self._graph.outputs}
        found = set()
        for output, given in _ALIASES.get(node.op_type, {}).items():
            value = node.inputs[given]
            if value is None or not value.is_graph_input() or len(value.uses()) != 1:
                continue
            if outputs.get(node.outputs[output]) == f"{value.name}.out":
                found.add(given)
        return frozenset(found)


def _check_known(graph: ir.Graph) -> None:
    unknown = {
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for node in graph
        if (node.domain, node.op_type) not in OPS
    }
    if unknown:
        raise GraphError(f"the interpreter does not know the ops {', '.join(sorted(unknown))}")


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _check_inputs(declared: Sequence[ir.Value], given: Mapping[str, Tensor]) -> None:
    """Names, types and shapes; a symbolic size is the same wherever it stands."""
    names = {str(value.name) for value in declared}
    if names != set(given):
        raise GraphError(f"inputs {sorted(names)} are declared, {sorted(given)} are given")
    sizes: dict[str, int] = {}
    for value in declared:
        tensor = given[str(value.name)]
        if value.dtype is None or value.shape is None or tensor.dtype != torch_type(value.dtype):
            raise GraphError(
                f"input {value.name} is declared {value.type}, {tensor.dtype} is given"
            )
        shape = [size if isinstance(size, int) else str(size) for size in value.shape]
        fits = len(shape) == tensor.dim() and all(
            size == (wanted if isinstance(wanted, int) else sizes.setdefault(wanted, size))
            for wanted, size in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            raise GraphError(
                f"input {value.name} is declared {shape}, {list(tensor.shape)} is given"
                f"{f' where {sizes}' if sizes else ''}"
            )


def _half_of_free_memory() -> int:
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 1 << 30
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
