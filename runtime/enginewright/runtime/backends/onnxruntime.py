"""Target cpu: an ONNX Runtime session over a pool of cache slots that it writes in place.

A step over the slots [s, s + B) of the pool binds, besides the tensors of engine.py's table:

| tensor                       | shape                      | dtype   | meaning                   |
|------------------------------|----------------------------|---------|---------------------------|
| k_cache.i, v_cache.i         | [B, kv_heads, C, head_dim] | float32 | the pool's own memory     |
| k_cache.i.out, v_cache.i.out | [B, kv_heads, C, head_dim] | float32 | the same addresses again  |

C is the block size, the tokens that a slot holds. The model has no block_table: its rows are
the bound range, in order.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry, KVEntry
from enginewright.runtime.backends.onnxruntime_session import (
    LOAD_ERRORS,
    SMALL_INPUTS,
    cache_names,
    check_interface,
    ort,
    session_options,
)
from enginewright.runtime.engine import BlockCopy, Engine, EngineInfo, StepBatch, StepSupport
from enginewright.runtime.errors import ArtifactError, NativeCodeError, TargetError

KEPT_LOGITS_ROWS = 64
"""Rows of the logits buffer that steps share; a step that wants more has one of its own."""

MAX_BINDINGS = 64
"""Kept bindings; a decode of n rows needs one for each n, the rest are rare."""


def open_engine(artifact: Artifact, entry: EngineEntry, threads: int | None) -> Engine:
    """Open the entry's model; its external data is memory-mapped from the artifact's folder."""
    for file in entry.files:
        artifact.file(file)
    library = None if entry.library is None else artifact.file(entry.library)
    invariant = artifact.manifest.chunk_invariant(entry.plan)
    return OnnxRuntimeEngine(artifact.file(entry.model), entry, threads, library, invariant)


class OnnxRuntimeEngine(Engine):
    """A session and its cache pool; see the module's table."""

    def __init__(
        self,
        model: Path,
        entry: EngineEntry,
        threads: int | None = None,
        library: Path | None = None,
        chunk_invariant: bool = False,
    ) -> None:
        self._session = _open_session(model, threads, library)
        self._info = replace(_describe(entry), chunk_invariant=chunk_invariant)
        check_interface(self._session, entry.kv, model, SMALL_INPUTS)
        self._pool = SlotPool(entry.kv)
        self._bindings: dict[tuple[int, int], Binding] = {}
        self._logits: NDArray[np.float32] = np.empty((0, entry.vocab_size), np.float32)

    def describe(self) -> EngineInfo:
        return self._info

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        batch = _even_prefill(batch)
        first, rows = int(batch.block_table[0, 0]), len(batch.input_ids)
        ends = batch.past_lengths + batch.new_lengths
        assert batch.block_table[:, 0].tolist() == list(range(first, first + rows))
        assert first + rows <= self._pool.slots
        assert int(ends.max()) <= self._pool.capacity
        logits = self._logits_rows(len(batch.logits_index))
        binding = self._binding(first, rows)
        binding.fill(batch, logits)
        self._session.run_with_iobinding(binding.io)
        self._pool.note_lengths(first, ends)
        return logits

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        for each in copies:
            self._pool.copy(each)

    def resize(self, blocks: int, block_size: int) -> None:
        self._bindings.clear()  # they hold addresses of the old pool
        self._pool.resize(blocks, block_size)

    def close(self) -> None:
        self._bindings.clear()
        self._pool.clear()
        self._session = None

    def _logits_rows(self, rows: int) -> NDArray[np.float32]:
        """Room for the logits: the same for every step that wants few rows.

        A step that scores a whole prompt needs far more, which is not kept.
        """
        if rows > KEPT_LOGITS_ROWS:
            return np.empty((rows, self._info.vocab_size), np.float32)
        if rows > len(self._logits):
            self._logits = np.empty((rows, self._info.vocab_size), np.float32)
        return self._logits[:rows]

    def _binding(self, first: int, rows: int) -> Binding:
        """The binding of a range of slots: 4 tensors a layer, bound once and kept."""
        binding = self._bindings.get((first, rows))
        if binding is None:
            if len(self._bindings) == MAX_BINDINGS:
                self._bindings.pop(next(iter(self._bindings)))
            binding = Binding(self._session.io_binding())
            for name, tensor in self._pool.tensors.items():
                binding.bind_in_place(name, tensor[first : first + rows])
            self._bindings[first, rows] = binding
        return binding


@dataclass
class Binding:
    """An IOBinding to one range of slots, and the fixed-address inputs bound to it last.

    Bound memory is referred to by address only, so the arrays are kept here. The logits are the
    step's own.
    """

    io: Any
    bound: tuple[int, ...] = ()
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)

    def bind_in_place(self, name: str, tensor: NDArray[Any]) -> None:
        """Bind a cache tensor as an input and as its own output."""
        address = tensor.ctypes.data
        self.io.bind_input(name, "cpu", 0, tensor.dtype.type, tensor.shape, address)
        self.io.bind_output(f"{name}.out", "cpu", 0, tensor.dtype.type, tensor.shape, address)

    def fill(self, batch: StepBatch, logits: NDArray[np.float32]) -> None:
        """Copy the batch to the bound inputs; bind anew what differs from the last step."""
        bound = (*batch.input_ids.shape, len(logits), logits.ctypes.data)
        if bound != self.bound:
            self._bind(batch, logits)
            self.bound = bound
        for name, array in self.inputs.items():
            array[...] = getattr(batch, name)

    def _bind(self, batch: StepBatch, logits: NDArray[np.float32]) -> None:
        for name in SMALL_INPUTS:
            array = np.empty_like(getattr(batch, name), order="C")
            self.io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            self.inputs[name] = array
        self.io.bind_output("logits", "cpu", 0, logits.dtype.type, logits.shape, logits.ctypes.data)


class SlotPool:
    """The cache's memory: for each layer and kind one array [slots, kv_heads, C, head_dim].

    Arrays come zeroed from the system, which commits a page when it is first touched; numpy would
    ask for huge pages, of which most of a slot is never used. What a slot holds beyond its row's
    length is never read, so copying and growing leave it out.
    """

    def __init__(self, kv: KVEntry) -> None:
        self._names = cache_names(kv)
        self._kv_heads, self._head_dim = kv.kv_heads, kv.head_dim
        self.clear()

    def clear(self) -> None:
        self.tensors: dict[str, NDArray[np.float32]] = {
            name: self._zeros(0, 0) for name in self._names
        }
        self._lengths: NDArray[np.int32] = np.zeros(0, np.int32)

    @property
    def slots(self) -> int:
        return len(self._lengths)

    @property
    def capacity(self) -> int:
        """Tokens that a slot holds."""
        return int(next(iter(self.tensors.values())).shape[2])

    def note_lengths(self, first: int, lengths: NDArray[np.int32]) -> None:
        self._lengths[first : first + len(lengths)] = lengths

    def copy(self, copy: BlockCopy) -> None:
        tokens = slice(copy.start, copy.end)
        for tensor in self.tensors.values():
            tensor[copy.destination, :, tokens] = tensor[copy.source, :, tokens]
        self._lengths[copy.destination] = copy.end

    def resize(self, slots: int, capacity: int) -> None:
        kept = np.minimum(self._lengths[:slots], capacity)
        for name, old in self.tensors.items():  # one by one: only one is held twice at a time
            new = self._zeros(slots, capacity)
            for slot, used in enumerate(kept):
                new[slot, :, :used] = old[slot, :, :used]
            self.tensors[name] = new
        self._lengths = np.zeros(slots, np.int32)
        self._lengths[: len(kept)] = kept

    def _zeros(self, slots: int, capacity: int) -> NDArray[np.float32]:
        even = capacity + capacity % 2  # a prefill writes its padding too
        shape = (slots, self._kv_heads, even, self._head_dim)
        size = math.prod(shape)
        if size == 0:
            return np.zeros(shape, np.float32)
        return np.frombuffer(_private_pages(4 * size), np.float32).reshape(shape)


def _private_pages(size: int) -> mmap.mmap:
    """Zeroed memory of this process, a small page of it committed where it is touched."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages has nothing to forbid
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages


def _even_prefill(batch: StepBatch) -> StepBatch:
    """Pad a prefill to an even width.

    ONNX Runtime's products treat a last single row by another kernel, whose sums are rounded
    differently: of an odd width, the last position would depend on the batch that it is in.
    """
    width = batch.input_ids.shape[1]
    if width % 2 == 0 or batch.past_lengths.any():
        return batch
    row, position = np.divmod(batch.logits_index, width)
    return replace(
        batch,
        input_ids=np.pad(batch.input_ids, ((0, 0), (0, 1))),
        logits_index=row * (width + 1) + position,
    )


def _open_session(model: Path, threads: int | None, library: Path | None) -> Any:
    options = session_options(threads)
    if library is not None:
        _register(options, library)
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS as error:
        kind = ArtifactError if library is None else NativeCodeError
        raise kind(
            f"{model}: onnxruntime {ort.__version__} cannot load this engine ({error}); "
            f"build it again with this version of enginewright, or upgrade onnxruntime"
        ) from error


def _register(options: Any, library: Path) -> None:
    try:
        options.register_custom_ops_library(str(library.resolve()))
    except LOAD_ERRORS as error:
        raise NativeCodeError(f"{library} cannot be loaded ({error})") from error


def _describe(entry: EngineEntry) -> EngineInfo:
    kv = entry.kv
    if kv.layout != "slots" or kv.dtype != "float32":
        raise TargetError(
            f"target {entry.target!r}: a cache of layout {kv.layout!r} and type {kv.dtype!r} was "
            f"built, the onnxruntime backend runs 'slots' of 'float32'; build it again"
        )
    steps = entry.steps
    return EngineInfo(
        vocab_size=entry.vocab_size,
        max_context=entry.limits.max_context,
        max_batch=entry.limits.max_batch,
        steps=StepSupport(steps.decode, steps.prefill, steps.extend),
        kv_layout="slots",
        kv_bytes_per_token=2 * kv.layers * kv.kv_heads * kv.head_dim * 4,
        batch_invariant=entry.batch_invariant,
    )
