"""An architecture's parameters and caches as its config gives them; no weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from enginewright.builder.export import CacheShape, probe_caches, quiet, skeleton
from enginewright.builder.families import Family

Kind = Literal["layer", "head", "embedding", "other"]


@dataclass(frozen=True)
class Parameter:
    """A tensor by its owner's name; ``kind`` says which rule of rounding it falls under.

    A matrix is [outputs, inputs], however the model stores it.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True)
class Architecture:
    """Parameters, tied ones once, and the cache of each layer."""

    parameters: tuple[Parameter, ...]
    caches: tuple[CacheShape, ...]
    tied: bool
    vocab_size: int

    @property
    def layers(self) -> int:
        return len(self.caches)

    @property
    def count(self) -> int:
        """Numbers in all parameters."""
        return sum(parameter.count for parameter in self.parameters)


def read_architecture(config: PreTrainedConfig, family: Family) -> Architecture:
    """Make the module over memory that is never touched, and look at it."""
    with quiet(), torch.no_grad():
        module = skeleton(config)
        family.prepare(module)
        caches = probe_caches(module)
    found = tuple(_parameters(module))
    head, table = _ends(module)
    tied = head is not None and table is not None and head.weight is table.weight
    return Architecture(found, tuple(caches), tied, config.vocab_size)


def _parameters(module: PreTrainedModel) -> Iterator[Parameter]:
    kinds: dict[int, Kind] = {}
    turned = set()
    for part in module.modules():
        if isinstance(part, nn.Linear | Conv1D):
            kinds[id(part.weight)] = "layer"
        if isinstance(part, Conv1D):
            turned.add(id(part.weight))
    head, table = _ends(module)
    if head is not None:
        kinds[id(head.weight)] = "head"
    if table is not None:
        kinds[id(table.weight)] = "embedding"
    for name, parameter in module.named_parameters():
        shape = tuple(parameter.shape)
        shape = shape[::-1] if id(parameter) in turned else shape
        yield Parameter(name, kinds.get(id(parameter), "other"), shape)


def _ends(module: Any) -> tuple[Any, Any]:
    """The head and the token embedding."""
    return module.get_output_embeddings(), module.get_input_embeddings()
