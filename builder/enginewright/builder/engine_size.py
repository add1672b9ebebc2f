"""How large an engine will be, from parameters, precision and target, before anything is built.

Matrices follow the same rules as when they are built (stored_blocks.py, device_weights.py); the
source's headers say which it stores in blocks. What a graph or a TensorRT engine has beside its
weights goes by the layer; the figures were measured on models of 2 to 30 layers.
"""

from __future__ import annotations

from collections.abc import Callable

from enginewright.builder import quantization
from enginewright.builder.parameters import Architecture, Parameter
from enginewright.builder.weights import StoredForm, Weight

_GRAPH = {"cpu": 19_500, "cuda": 4_500}
"""Bytes of the graphs of all plans, a layer."""
_RTX = {"fp16": 700_000, "bf16": 700_000}
_RTX_LAYER, _RTX_BASE = 1_800_000, 3_300_000
"""Bytes of code in a TensorRT engine: a layer, by precision or else; and at least."""
_ITEM = {"fp32": 4, "fp16": 2, "bf16": 2}

GetWeight = Callable[[str], Weight]


def weights_bytes(
    architecture: Architecture, target: str, precision: str, positions: int, weight: GetWeight
) -> int:
    """Bytes of all weights and rotary tables."""
    rule = _Rule(architecture, target, precision, weight)
    stored = sum(rule.bytes_of(parameter) for parameter in architecture.parameters)
    head_dim = max(cache.head_dim for cache in architecture.caches)
    return stored + positions * head_dim * rule.item


def graph_bytes(architecture: Architecture, target: str, precision: str) -> int:
    """Bytes of what an engine has beside its weights."""
    if target in _GRAPH:
        return _GRAPH[target] * architecture.layers
    return _RTX_BASE + _RTX.get(precision, _RTX_LAYER) * architecture.layers


class _Rule:
    """Which bytes a parameter has in the engine."""

    def __init__(
        self, architecture: Architecture, target: str, precision: str, weight: GetWeight
    ) -> None:
        self._precision = precision
        self._weight = weight
        self._on_device = target != "cpu"
        self.item = 2 if self._on_device else 4
        layers = [each for each in architecture.parameters if each.kind == "layer"]
        forms = (self._stored(each) for each in layers)
        self._has_int4 = any(form is not None and form.bits == 4 for form in forms)

    def bytes_of(self, parameter: Parameter) -> int:
        whole = parameter.count * _ITEM.get(self._precision, self.item)
        if self._precision in _ITEM or parameter.kind == "other" or len(parameter.shape) != 2:
            return whole
        if self._on_device and self._precision not in ("int4", "int8"):
            bits = {"fp8": 8.0, "nvfp4": 4.5}[self._precision]
            return int(parameter.count * (8 if parameter.kind != "layer" else bits) / 8)
        return self._blocks(parameter) or whole

    def _blocks(self, parameter: Parameter) -> int | None:
        rows, inputs = parameter.shape
        form = self._form(parameter)
        if form is None or inputs % form.block_size:
            return None
        blocks = rows * (inputs // form.block_size)
        scales = (1 + form.offsets) * blocks * (4 if form.wide else 2)
        zeros = blocks * form.bits // 8 if form.zero_points else 0
        return rows * inputs * form.bits // 8 + scales + zeros

    def _form(self, parameter: Parameter) -> StoredForm | None:
        stored = self._stored(parameter)
        layer, int8 = parameter.kind == "layer", self._precision == "int8"
        least = 4 if layer and not int8 and not self._has_int4 else 8
        if stored is not None and (stored.bits == 4 or least == 8):
            bits = 8 if int8 else stored.bits
            zeros = stored.zero_points and bits == stored.bits
            return StoredForm(bits, stored.block_size, zeros, stored.offsets, stored.wide)
        size = quantization.block_size_for(parameter.shape[1])
        return None if size is None else StoredForm(least, size, zero_points=least == 4)

    def _stored(self, parameter: Parameter) -> StoredForm | None:
        return self._weight(parameter.name).stored_form()
