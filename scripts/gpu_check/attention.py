"""The attention kernels on the device: one node's tensors, and the launches over them.

B rows, S tokens, n blocks a row; one pool for each of ``layers``, so that a timing can walk through
more memory than the caches of the device hold.

| tensor           | shape                       | dtype   |
|------------------|-----------------------------|---------|
| q, out           | [B, S, heads * D]           | float16 |
| k, v             | [B, S, kv_heads * D]        | float16 |
| k_cache, v_cache | [blocks, kv_heads, size, D] | float16 |
| block_table      | [B, n]                      | int32   |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from enginewright.plugins.attention.contract import AttentionAttributes
from enginewright.plugins.attention.cuda.compile import compile_kernels
from enginewright.plugins.attention.cuda.config import KernelConfig
from enginewright.plugins.attention.cuda.launch import (
    Scalars,
    Shape,
    launches,
    workspace_bytes,
)
from enginewright.runtime.cuda.modules import KernelModules

BLOCK_SIZE = 32


@dataclass(frozen=True)
class Case:
    """One step over rows that all have the same past."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    batch: int
    tokens: int
    past: int
    layers: int = 1

    @property
    def attributes(self) -> AttentionAttributes:
        return AttentionAttributes(self.heads, self.kv_heads, self.head_dim**-0.5)

    @property
    def config(self) -> KernelConfig:
        return KernelConfig.from_attributes(
            self.attributes, io="float16", head_dim=self.head_dim, block_size=BLOCK_SIZE
        )

    @property
    def length(self) -> int:
        """Tokens of a row after the step."""
        return self.past + self.tokens

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that a step over one layer has to read."""
        return 2 * 2 * self.batch * self.length * self.kv_heads * self.head_dim


class Node:
    """The tensors of a case on the device, filled with noise, and its launches."""

    def __init__(self, case: Case, kernels: KernelModules) -> None:
        self.case, self._kernels = case, kernels
        blocks = -(-case.length // BLOCK_SIZE)
        width, kv_width = case.heads * case.head_dim, case.kv_heads * case.head_dim
        pool = (case.batch * blocks, case.kv_heads, BLOCK_SIZE, case.head_dim)
        self.q = _noise(case.batch, case.tokens, width)
        self.k, self.v = (_noise(case.batch, case.tokens, kv_width) for _ in range(2))
        self.pools = [(_noise(*pool), _noise(*pool)) for _ in range(case.layers)]
        order = torch.randperm(case.batch * blocks, device="cuda").to(torch.int32)
        self.table = order.reshape(case.batch, blocks)
        self.past = torch.full((case.batch,), case.past, dtype=torch.int32, device="cuda")
        self.new = torch.full((case.batch,), case.tokens, dtype=torch.int32, device="cuda")
        self.out = torch.empty_like(self.q)
        size = workspace_bytes(case.config, case.batch)
        self._workspace = torch.empty(size, dtype=torch.uint8, device="cuda")

    def run(self) -> None:
        """Queue the node once for each layer, on torch's current stream."""
        case, stream = self.case, torch.cuda.current_stream().cuda_stream
        shape = Shape(case.batch, case.tokens, self.table.shape[1])
        for k_cache, v_cache in self.pools:
            tensors = {
                "q": self.q,
                "k": self.k,
                "v": self.v,
                "k_cache": k_cache,
                "v_cache": v_cache,
                "block_table": self.table,
                "past_lengths": self.past,
                "new_lengths": self.new,
                "out": self.out,
                "workspace": self._workspace,
            }
            pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
            scalars = Scalars(case.attributes.scale)
            for launch in launches(case.config, self._kernels.capability, shape, scalars, pointers):
                self._kernels.launch(case.config, launch, stream)

    def contiguous(self, layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer as [B, kv_heads, length, D], as they stand in the pool."""
        case = self.case
        parts = [pool[self.table.long()] for pool in self.pools[layer]]
        k, v = (
            part.transpose(1, 2).reshape(case.batch, case.kv_heads, -1, case.head_dim)
            for part in parts
        )
        return k[:, :, : case.length], v[:, :, : case.length]

    def queries(self) -> torch.Tensor:
        """[B, heads, S, D]."""
        case = self.case
        return self.q.reshape(case.batch, case.tokens, case.heads, -1).transpose(1, 2)


def load(cases: list[Case], folder: Path, capability: str) -> KernelModules:
    """Compile the kernels of all cases here, and load them."""
    configs = list({case.config.key: case.config for case in cases}.values())
    return KernelModules(compile_kernels(configs, [capability], folder), capability)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float16, device="cuda")
