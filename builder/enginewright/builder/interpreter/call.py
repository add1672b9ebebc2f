"""One node, ready to be called, and what it may keep between calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from enginewright.builder.interpreter.errors import GraphError

HALVES = (torch.float16, torch.bfloat16)


class Room:
    """Bytes that may still be spent on what is kept to be faster."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> bool:
        """Whether there is so much; then it is spent."""
        if size > self._left:
            return False
        self._left -= size
        return True


class Widened:
    """Constants in float32, computed once while there is room to keep them."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._kept: dict[ir.Value, Tensor] = {}

    def of(self, value: ir.Value, tensor: Tensor) -> Tensor:
        found = self._kept.get(value)
        if found is None:
            found = tensor.float()
            if found is not tensor and self._room.take(found.nbytes):
                self._kept[value] = found
        return found


@dataclass(frozen=True)
class Call:
    """A node with its attributes as plain values.

    ``constant``: which inputs are. ``in_place``: the inputs that may be written over, because they
    share the memory of an output and nothing else reads them.
    """

    node: ir.Node
    op: Op
    attributes: Mapping[str, Any]
    constant: tuple[bool, ...]
    in_place: frozenset[int]
    widened: Widened

    def __str__(self) -> str:
        domain = f"{self.node.domain}::" if self.node.domain else ""
        return f"node {self.node.name or self.node.outputs[0].name} ({domain}{self.node.op_type})"

    def __call__(self, operands: Sequence[Tensor | None]) -> Sequence[Tensor]:
        result = self.op(self, *operands)
        return (result,) if isinstance(result, Tensor) else result

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what it is where it is not given."""
        return self.attributes.get(name, default)

    def wide(self, index: int, tensor: Tensor) -> Tensor:
        """The operand of that index in float32."""
        if tensor.dtype == torch.float32:
            return tensor
        value = self.node.inputs[index]
        if value is None or not self.constant[index]:
            return tensor.float()
        return self.widened.of(value, tensor)

    def writable(self, index: int, tensor: Tensor) -> Tensor:
        """The operand of that index itself, if it may be written over, else a copy."""
        return tensor if index in self.in_place else tensor.clone()

    def error(self, message: str) -> GraphError:
        """An error that names the node."""
        return GraphError(f"{self}: {message}")


Op = Callable[..., Tensor | Sequence[Tensor]]
