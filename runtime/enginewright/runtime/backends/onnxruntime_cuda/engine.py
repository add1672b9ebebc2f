"""The engine of target cuda: what a step does on the device, in order of one stream.

Inputs go to the device in one copy, ONNX Runtime runs over them and the caches where they lie, and
logits come back to pinned memory; then the host waits once. A step binds:

| tensor                       | shape               | dtype   | where                             |
|------------------------------|---------------------|---------|-----------------------------------|
| input_ids                    | [B, S]              | int64   | a block of the device             |
| past_lengths, new_lengths    | [B]                 | int32   | the same block                    |
| logits_index                 | [L]                 | int64   | the same block                    |
| total_length                 | []                  | int32   | the host                          |
| k_cache.i, v_cache.i         | [B, kv_heads, C, D] | T       | the pool, from the step's slot on |
| k_cache.i.out, v_cache.i.out | [B, kv_heads, C, D] | T       | the same addresses again          |
| logits                       | [L, V]              | float32 | the device                        |

A decode step of each number of rows is bound once and runs as a CUDA graph, which ONNX Runtime
captures after its first runs. A graph holds what it was captured with: so total_length is C there,
the longest that any row can have, as the true lengths are on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.backends.device.description import describe
from enginewright.runtime.backends.device.planning import (
    BoundStep,
    EngineFacts,
    bind,
    decode_bytes,
)
from enginewright.runtime.backends.device.pool import DevicePool
from enginewright.runtime.backends.device.step_memory import PromptMemory, StepMemory
from enginewright.runtime.backends.onnxruntime_cuda.session import run_options
from enginewright.runtime.backends.onnxruntime_session import LOAD_ERRORS
from enginewright.runtime.cuda.driver import Device, release_quietly
from enginewright.runtime.cuda.stream import Stream
from enginewright.runtime.engine import BlockCopy, Engine, EngineInfo, StepBatch, StepLogits
from enginewright.runtime.errors import DeviceCode, DeviceError

ONNX_TYPES = {"float16": 10, "bfloat16": 16}
"""Of the cache, by the numbers that ONNX gives them: numpy has no bfloat16."""


@dataclass(frozen=True)
class Binding:
    """Tensors bound by address, and how they are run. ``total``: total_length's own memory."""

    io: Any
    options: Any
    total: NDArray[np.int32]
    graph: int | None


class CudaEngine(Engine):
    """A session and its cache pool; see the module's table."""

    def __init__(
        self,
        session: Any,
        entry: EngineEntry,
        device: Device,
        stream: Stream,
        *,
        chunk_invariant: bool,
    ) -> None:
        self._session, self._entry = session, entry
        self._device, self._stream = device, stream
        self._info = describe(entry, chunk_invariant=chunk_invariant)
        self._facts = EngineFacts.of(entry)
        self._graphs = count(1)  # a number is never used again: its graph holds old addresses
        self._decodes: dict[int, Binding] = {}
        self._memory, self._owned = ExitStack(), ExitStack()
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    def own(self, owned: ExitStack) -> None:
        """Take over what is to be freed when the engine is closed: the stream, the device."""
        self._owned = owned

    def describe(self) -> EngineInfo:
        return self._info

    def step(self, batch: StepBatch) -> StepLogits:
        assert int(batch.block_table.max()) < self._pool.blocks
        self._device.use()
        step = bind(batch, self._facts, 0)
        decode = step.profile == "decode"
        memory = self._decode_memory if decode else self._prompt_memory.take(step)
        memory.fill(step)
        memory.upload(step, self._stream)
        binding = self._decode_binding(step) if decode else self._prompt_binding(step, memory)
        self._run(binding)
        memory.download(step, self._stream)
        self._stream.synchronize()
        return memory.logits(step, self._stream)

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        self._device.use()
        for each in copies:
            self._pool.copy(each)

    def resize(self, blocks: int, block_size: int) -> None:
        assert block_size == self._pool.block_size, "the engine was built for one"
        self._device.use()
        self._drop_decodes()
        self._pool.resize(blocks)

    def close(self) -> None:
        if self._session is None:
            return
        release_quietly(self._device.use)  # this may be another thread
        release_quietly(self._drop_decodes)
        self._session = None
        self._memory.close()
        self._owned.close()

    def _allocate(self) -> None:
        """Everything but the cache, which the first ``resize`` makes."""
        rows, vocab_size = self._info.max_batch, self._info.vocab_size
        self._pool = DevicePool(self._entry, self._stream)
        self._memory.callback(release_quietly, self._pool.free)
        self._prompt_memory = PromptMemory(vocab_size)
        self._memory.callback(release_quietly, self._prompt_memory.free)
        self._decode_memory = StepMemory(decode_bytes(self._facts), rows, vocab_size)
        self._memory.callback(release_quietly, self._decode_memory.free)

    def _run(self, binding: Binding) -> None:
        try:
            self._session.run_with_iobinding(binding.io, binding.options)
        except LOAD_ERRORS as error:
            raise run_failure(str(error)) from error

    def _decode_binding(self, step: BoundStep) -> Binding:
        found = self._decodes.get(step.rows)
        if found is None:
            graph = next(self._graphs)
            found = self._bind(step, self._decode_memory, self._pool.block_size, graph)
            self._decodes[step.rows] = found
        return found

    def _prompt_binding(self, step: BoundStep, memory: StepMemory) -> Binding:
        return self._bind(step, memory, longest_total(step), None)

    def _bind(
        self, step: BoundStep, memory: StepMemory, total_length: int, graph: int | None
    ) -> Binding:
        io, total = self._session.io_binding(), np.array(total_length, np.int32)
        io.bind_input("total_length", "cpu", 0, np.int32, (), total.ctypes.data)
        for name, address, shape in memory.addresses(step):
            if shape is None:
                rows = (step.logits_rows, self._info.vocab_size)
                io.bind_output(name, "cuda", 0, np.float32, rows, address)
            else:
                io.bind_input(name, "cuda", 0, step.inputs[name].dtype.type, shape, address)
        kind = ONNX_TYPES[self._entry.kv.dtype]
        for name, address, shape in self._pool.bindings(step.first, step.rows):
            io.bind_input(name, "cuda", 0, kind, shape, address)
            io.bind_output(f"{name}.out", "cuda", 0, kind, shape, address)
        return Binding(io, run_options(graph), total, graph)

    def _drop_decodes(self) -> None:
        """Forget the bindings and graphs, which hold the pool's addresses."""
        self._stream.synchronize()
        for binding in self._decodes.values():
            self._session.release_captured_graph(binding.graph)
        self._decodes.clear()


def longest_total(step: BoundStep) -> int:
    """total_length of a step over prompts: its width where no row has a past, which tells the
    op so; else the longest of past and new tokens."""
    ends = step.inputs["past_lengths"] + step.inputs["new_lengths"]
    width: int = step.inputs["input_ids"].shape[1]
    return max(int(ends.max()), width)


def run_failure(text: str) -> DeviceError:
    """The error that ONNX Runtime's message of a failed run stands for."""
    full = any(sign in text.lower() for sign in ("out of memory", "failed to allocate memory"))
    code: DeviceCode = "out_of_memory" if full else "device_failed"
    cure = (
        "lower max_num_seqs or max_model_len, or end what else runs on the GPU"
        if full
        else "close the model and open it again; enginewright doctor looks at the GPU"
    )
    return DeviceError(f"ONNX Runtime failed on the GPU: {text}. {cure}", code)
