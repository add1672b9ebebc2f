"""The runtime's Engine over an interpreted graph, so that an LLM runs it without its device.

A step feeds what the graph takes of engine.py's table, and the pool, which it writes in place:

| tensor               | layout slots               | layout paged                    | dtype      |
|----------------------|----------------------------|---------------------------------|------------|
| k_cache.i, v_cache.i | [B, kv_heads, C, D]        | [blocks, kv_heads, size, D]     | T/int8/fp8 |
| block_table          | the bound range of slots   | [B, n]                          | int32      |
| total_length         | [], the target cuda's      |                                 | int32      |

With ``slots`` C is the capacity that the graph was lowered for, and a step is given its own range
of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from enginewright.builder.interpreter.interpreter import Interpreter
from enginewright.builder.interpreter.tensors import torch_type
from enginewright.builder.passes.reduce_logits import OUTPUTS as REDUCED
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.engine import (
    BlockCopy,
    Engine,
    EngineInfo,
    ReducedLogits,
    StepBatch,
    StepLogits,
    StepSupport,
)


class InterpretedEngine(Engine):
    """The engine that ``entry`` describes, its lowered graph interpreted.

    Every step is held to the shapes of the entry's optimization profiles, where it has any: what
    runs here is what the device's engine takes.
    """

    def __init__(
        self, model: ir.Model, entry: EngineEntry, *, keep_bytes: int | None = None
    ) -> None:
        self._entry = entry
        self._interpreter = Interpreter(model, keep_bytes=keep_bytes)
        self._inputs = {str(value.name): value for value in self._interpreter.inputs}
        self._paged = entry.kv.layout == "paged"
        self._pool: dict[str, Tensor] = {}
        self.resize(0, self._block_size)

    @property
    def _block_size(self) -> int:
        return self._entry.kv.block_size or self._entry.limits.max_context

    def describe(self) -> EngineInfo:
        entry, kv = self._entry, self._entry.kv
        values = 2 * kv.layers * kv.kv_heads * kv.head_dim
        steps = entry.steps
        return EngineInfo(
            vocab_size=entry.vocab_size,
            max_context=entry.limits.max_context,
            max_batch=entry.limits.max_batch,
            steps=StepSupport(steps.decode, steps.prefill, steps.extend, steps.tokens),
            kv_layout=kv.layout,
            kv_bytes_per_token=values * next(iter(self._pool.values())).element_size(),
            batch_invariant=entry.batch_invariant,
            kv_block_size=self._block_size,
        )

    def step(self, batch: StepBatch) -> StepLogits:
        feeds = {
            name: torch.from_numpy(np.array(_step_input(batch, name)))
            for name in self._inputs
            if name not in self._pool
        }
        caches = self._pool if self._paged else self._slots(batch)
        self._check_profiles({**feeds, **caches})
        outputs = self._interpreter.run({**feeds, **caches})
        for name, cache in caches.items():
            written = outputs[f"{name}.out"]
            assert written.data_ptr() == cache.data_ptr(), f"{name} is written in place"
        logits = outputs["logits"].numpy()
        if REDUCED[0] not in outputs:
            return logits
        top_logits, top_ids, log_normalizer = (outputs[name].numpy() for name in REDUCED)
        return ReducedLogits(
            top_logits, top_ids, log_normalizer, lambda start, end: logits[start:end]
        )

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        for each in copies:
            tokens = slice(each.start, each.end)
            for tensor in self._pool.values():
                tensor[each.destination, :, tokens] = tensor[each.source, :, tokens]

    def resize(self, blocks: int, block_size: int) -> None:
        assert block_size == self._block_size, "the graph was lowered for blocks of one size"
        kv = self._entry.kv
        for name, value in self._inputs.items():
            if not name.startswith(("k_cache.", "v_cache.")):
                continue
            assert value.dtype is not None
            pool = torch.zeros(
                blocks, kv.kv_heads, block_size, kv.head_dim, dtype=torch_type(value.dtype)
            )
            old = self._pool.get(name, pool[:0])[:blocks]
            pool[: len(old)] = old
            self._pool[name] = pool

    def close(self) -> None:
        self._pool = {name: tensor[:0] for name, tensor in self._pool.items()}

    def _slots(self, batch: StepBatch) -> dict[str, Tensor]:
        """The range of the pool that a step's rows are."""
        first, rows = int(batch.block_table[0, 0]), len(batch.input_ids)
        assert batch.block_table[:, 0].tolist() == list(range(first, first + rows))
        return {name: tensor[first : first + rows] for name, tensor in self._pool.items()}

    def _check_profiles(self, feeds: dict[str, Tensor]) -> None:
        profiles = self._entry.nvidia.profiles if self._entry.nvidia else ()
        shapes = {name: tuple(tensor.shape) for name, tensor in feeds.items()}
        fits = [
            all(
                low <= size <= high
                for name, (lowest, _, highest) in profile.shapes.items()
                for low, size, high in zip(lowest, shapes[name], highest, strict=True)
            )
            for profile in profiles
        ]
        small = {name: shape for name, shape in shapes.items() if name not in self._pool}
        assert not fits or any(fits), f"no optimization profile takes a step of {small}"


def _step_input(batch: StepBatch, name: str) -> NDArray[np.int32] | NDArray[np.int64]:
    """An input by its name; ``total_length`` is the longest row, and in a prefill the width."""
    if name != "total_length":
        found: NDArray[np.int32] = getattr(batch, name)
        return found
    ends, width = batch.past_lengths + batch.new_lengths, batch.input_ids.shape[1]
    return np.array(max(int(ends.max()), width), np.int32)
