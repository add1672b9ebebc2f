"""The engine of both targets: what a step does on the device, in order of the stream.

Inputs go to the device in one copy, TensorRT runs, logits [L, V] float32 (or the highest alone, see
step_memory.py) come back to pinned memory, and the host waits once. Decode steps run all of that as
one CUDA graph for each bucket of rows (planning.py); the first step of a bucket runs as it is, and
is captured then; where that fails, the bucket's steps run as they are. The caches never leave the
device: outputs ``*.out`` have the addresses of the inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.backends.device.description import describe
from enginewright.runtime.backends.device.planning import (
    BoundStep,
    EngineFacts,
    ProfileName,
    bind,
    decode_bytes,
)
from enginewright.runtime.backends.device.pool import DevicePool
from enginewright.runtime.backends.device.step_memory import PromptMemory, StepMemory
from enginewright.runtime.backends.tensorrt.executor import Binding, Executor, runtime_config
from enginewright.runtime.backends.tensorrt.jit_cache import JitCache, JitKey
from enginewright.runtime.backends.tensorrt.library import Messages
from enginewright.runtime.cuda.driver import Device, release_quietly
from enginewright.runtime.cuda.graph import Graph
from enginewright.runtime.cuda.memory import DeviceBuffer
from enginewright.runtime.cuda.stream import Stream
from enginewright.runtime.engine import BlockCopy, Engine, EngineInfo, StepBatch, StepLogits
from enginewright.runtime.errors import DeviceError

logger = logging.getLogger(__name__)


@dataclass
class OpenEngine:
    """An engine as the library loaded it, and the runtime that must outlive it.

    ``owned`` frees what lies under them, the device's context at last.
    """

    trt: Any
    runtime: Any
    engine: Any
    messages: Messages
    device: Device
    jit: JitKey
    owned: ExitStack

    def close(self) -> None:
        """Give all of it back; twice is allowed."""
        self.engine = self.runtime = None  # while the device's context still is
        self.owned.close()


@dataclass
class Bucket:
    """A decode step of so many rows: its context, and its graph once it is captured.

    ``captures`` turns false where that failed: it is not tried at every step.
    """

    executor: Executor
    graph: Graph | None = None
    captures: bool = True


class TensorRTEngine(Engine):
    """A loaded engine and its cache pool."""

    def __init__(self, loaded: OpenEngine, entry: EngineEntry, *, chunk_invariant: bool) -> None:
        self._loaded, self._entry = loaded, entry
        self._info = describe(entry, chunk_invariant=chunk_invariant)
        self._facts = EngineFacts.of(entry)
        self._owned = ExitStack()
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    def describe(self) -> EngineInfo:
        return self._info

    def step(self, batch: StepBatch) -> StepLogits:
        assert int(batch.block_table.max()) < self._pool.blocks
        self._loaded.device.use()
        step = bind(batch, self._facts, self._pool.blocks)
        memory = self._decode_memory if step.profile == "decode" else self._prompt_memory.take(step)
        memory.fill(step)
        if step.profile == "decode":
            self._decode(step)
        else:
            self._queue(self._prefill, step, memory)
        self._stream.synchronize()
        return memory.logits(step, self._stream)

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        self._loaded.device.use()
        for each in copies:
            self._pool.copy(each)

    def resize(self, blocks: int, block_size: int) -> None:
        assert block_size == self._pool.block_size, "the engine was built for one"
        self._loaded.device.use()
        self._drop_graphs()  # they hold addresses of the old pool
        self._pool.resize(blocks)

    def close(self) -> None:
        if self._loaded.engine is not None:
            release_quietly(self._loaded.device.use)  # this may be another thread
        self._owned.close()
        self._loaded.close()

    def _allocate(self) -> None:
        """Everything but the cache, which the first ``resize`` makes."""
        loaded, rows, top = self._loaded, self._info.max_batch, self._entry.top_logits
        self._stream = Stream()
        self._free_at_end(self._stream.close)
        self._pool = DevicePool(self._entry, self._stream)
        self._free_at_end(self._pool.free)
        vocab_size = self._info.vocab_size
        self._decode_memory = StepMemory(decode_bytes(self._facts), rows, vocab_size, top)
        self._free_at_end(self._decode_memory.free)
        self._prompt_memory = PromptMemory(vocab_size, top)
        self._free_at_end(self._prompt_memory.free)
        self._scratch = DeviceBuffer(loaded.engine.device_memory_size_v2, "TensorRT's scratch")
        self._free_at_end(self._scratch.free)
        self._configs = {
            name: runtime_config(loaded.trt, loaded.engine, specialize=name == "decode")
            for name in ("decode", "prefill")
        }
        self._free_at_end(self._configs.clear)
        self._jit = JitCache.attached(list(self._configs.values()), loaded.jit)
        self._prefill = self._executor("prefill")
        self._free_at_end(self._prefill.close)
        self._buckets: dict[int, Bucket] = {}
        self._free_at_end(self._drop_buckets)
        self._free_at_end(self._jit.close)

    def _free_at_end(self, free: Any) -> None:
        self._owned.callback(release_quietly, free)

    def _executor(self, profile: ProfileName) -> Executor:
        nvidia, loaded = self._entry.nvidia, self._loaded
        assert nvidia is not None
        index = [each.name for each in nvidia.profiles].index(profile)
        config = self._configs[profile]
        return Executor(loaded.engine, config, index, self._scratch, loaded.messages)

    def _decode(self, step: BoundStep) -> None:
        """Replay the bucket's graph; the first time, run and then capture it."""
        found = self._buckets.get(step.rows)
        if found is None:
            found = self._buckets[step.rows] = Bucket(self._executor("decode"))
        if found.graph is not None:
            found.graph.launch(self._stream)
            return

        def queue() -> None:
            self._queue(found.executor, step, self._decode_memory)

        queue()
        self._stream.synchronize()
        if found.captures and found.executor.capturable(self._stream):
            try:
                found.graph = Graph.capture(self._stream, queue)
            except DeviceError as error:  # the step itself is done
                found.captures = False
                logger.warning("decode steps of %d rows run without a graph: %s", step.rows, error)
            self._jit.save()

    def _queue(self, executor: Executor, step: BoundStep, memory: StepMemory) -> None:
        memory.upload(step, self._stream)
        executor.queue(self._bindings(step, memory), self._stream)
        memory.download(step, self._stream)

    def _bindings(self, step: BoundStep, memory: StepMemory) -> Iterator[Binding]:
        nvidia = self._entry.nvidia
        assert nvidia is not None
        yield from memory.addresses(step)
        addresses = {}
        for name, address, shape in self._pool.bindings(step.first, step.rows):
            yield name, address, shape
            addresses[name] = address
        for output, name in nvidia.aliases.items():
            yield output, addresses[name], None

    def _drop_graphs(self) -> None:
        self._stream.synchronize()
        for bucket in self._buckets.values():
            if bucket.graph is not None:
                bucket.graph.close()
                bucket.graph = None

    def _drop_buckets(self) -> None:
        self._drop_graphs()
        for bucket in self._buckets.values():
            bucket.executor.close()
        self._buckets.clear()
