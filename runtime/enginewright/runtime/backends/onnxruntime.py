"""Target cpu: an ONNX Runtime session over a cache pool that it writes in place.

A step binds, besides the tensors of engine.py's table:

| tensor                       | shape              | dtype | meaning                  |
|------------------------------|--------------------|-------|--------------------------|
| k_cache.i, v_cache.i         | [B or blocks, ...] | T     | the pool's own memory    |
| k_cache.i.out, v_cache.i.out | the same           | T     | the same addresses again |

With ``slots`` these are the slots [s, s + B) of the rows, and the model has no block_table; with
``paged`` all blocks, whatever the batch. T and the layouts are in onnxruntime_pools.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry, Manifest
from enginewright.runtime.backends.cpu_kernels import hold_to, kernels_of
from enginewright.runtime.backends.onnxruntime_pools import PagedPool, Place, SlotPool
from enginewright.runtime.backends.onnxruntime_session import (
    LOAD_ERRORS,
    SMALL_INPUTS,
    check_interface,
    ort,
    session_options,
)
from enginewright.runtime.cores import warn_of_threads
from enginewright.runtime.doctor.needs import kv_bytes_per_token
from enginewright.runtime.engine import (
    BlockCopy,
    Engine,
    EngineInfo,
    ReducedLogits,
    StepBatch,
    StepLogits,
    StepSupport,
    reduced_outputs,
)
from enginewright.runtime.errors import ArtifactError, NativeCodeError, TargetError
from enginewright.runtime.processor import check_variables

KEPT_LOGITS_ROWS = 64
"""Rows of the outputs that steps share; a step that wants more has its own."""

MAX_BINDINGS = 64
"""Kept bindings; a decode of n rows needs one for each n, the rest are rare."""


def open_engine(
    artifact: Artifact, entry: EngineEntry, threads: int | None, *, in_turns: bool
) -> Engine:
    """Open the entry's model; its external data is memory-mapped from the artifact's folder."""
    for file in entry.files:
        artifact.file(file)
    library = None if entry.library is None else artifact.file(entry.library)
    model = artifact.file(entry.model)
    engine = OnnxRuntimeEngine(model, entry, threads, library, artifact.manifest, in_turns=in_turns)
    warn_of_threads(threads)
    return engine


class OnnxRuntimeEngine(Engine):
    """A session and its cache pool; see the module's table.

    ``manifest``: what conformance found of the engine; without it nothing is known. ``in_turns``:
    another one steps after each of its steps, on the same cores.
    """

    def __init__(
        self,
        model: Path,
        entry: EngineEntry,
        threads: int | None = None,
        library: Path | None = None,
        manifest: Manifest | None = None,
        *,
        in_turns: bool = False,
    ) -> None:
        options = session_options(threads, in_turns=in_turns)
        self._session = _open_session(model, options, library, entry.cpu_kernels)
        self._info = _describe(entry, manifest, library)
        paged = entry.kv.layout == "paged"
        self._inputs = (*SMALL_INPUTS, "block_table") if paged else SMALL_INPUTS
        self._top = entry.top_logits
        self._outputs = self._empty_outputs(0)
        check_interface(self._session, entry.kv, model, self._inputs, self._outputs)
        self._pool = PagedPool(entry.kv, entry.limits) if paged else SlotPool(entry.kv)
        self._pads = entry.precision == "fp32" or not paged  # BlockLinear needs none
        self._pads_past = self._pads and paged  # slots have no room for padding there
        self._bindings: dict[Place, Binding] = {}

    def describe(self) -> EngineInfo:
        return self._info

    def step(self, batch: StepBatch) -> StepLogits:
        if self._pads_past or (self._pads and not batch.past_lengths.any()):
            batch = _even_width(batch)
        outputs = self._outputs_of(len(batch.logits_index))
        binding = self._binding(self._pool.place(batch))
        binding.fill(batch, outputs)
        self._session.run_with_iobinding(binding.io)
        self._pool.ran(batch)
        logits = outputs.pop("logits")
        return ReducedLogits(**outputs, bring=lambda a, b: logits[a:b]) if outputs else logits

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        for each in copies:
            self._pool.copy(each)

    def resize(self, blocks: int, block_size: int) -> None:
        if self._pool.resize(blocks, block_size):
            self._bindings.clear()  # they hold addresses of the old pool

    def close(self) -> None:
        self._bindings.clear()
        self._pool.clear()
        self._session = None

    def _outputs_of(self, rows: int) -> dict[str, NDArray[Any]]:
        """Room for the logits: the same for every step that wants few rows.

        A step that scores a whole prompt needs far more, which is not kept.
        """
        if rows > KEPT_LOGITS_ROWS:
            return self._empty_outputs(rows)
        if rows > len(self._outputs["logits"]):
            self._outputs = self._empty_outputs(rows)
        return {name: array[:rows] for name, array in self._outputs.items()}

    def _empty_outputs(self, rows: int) -> dict[str, NDArray[Any]]:
        logits = {"logits": np.empty((rows, self._info.vocab_size), np.float32)}
        return logits | (reduced_outputs(rows, self._top) if self._top else {})

    def _binding(self, place: Place) -> Binding:
        """The binding of a range of the pool: 4 tensors a layer, bound once and kept."""
        binding = self._bindings.get(place)
        if binding is None:
            if len(self._bindings) == MAX_BINDINGS:
                self._bindings.pop(next(iter(self._bindings)))
            binding = Binding(self._session.io_binding(), self._inputs)
            first, count = place
            for name, tensor in self._pool.tensors.items():
                binding.bind_in_place(name, tensor[first : first + count])
            self._bindings[place] = binding
        return binding


@dataclass
class Binding:
    """An IOBinding to one range of the pool, and the fixed-address inputs bound to it last.

    Bound memory is referred to by address only, so the arrays are kept here. The outputs are the
    step's own.
    """

    io: Any
    names: tuple[str, ...]
    bound: tuple[int, ...] = ()
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)

    def bind_in_place(self, name: str, tensor: NDArray[Any]) -> None:
        """Bind a cache tensor as an input and as its own output."""
        address = tensor.ctypes.data
        self.io.bind_input(name, "cpu", 0, tensor.dtype.type, tensor.shape, address)
        self.io.bind_output(f"{name}.out", "cpu", 0, tensor.dtype.type, tensor.shape, address)

    def fill(self, batch: StepBatch, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Copy the batch to the bound inputs; bind anew what differs from the last step."""
        bound = (
            *batch.input_ids.shape,
            batch.block_table.shape[1],
            len(batch.logits_index),
            *(array.ctypes.data for array in outputs.values()),
        )
        if bound != self.bound:
            self._bind(batch, outputs)
            self.bound = bound
        for name, array in self.inputs.items():
            array[...] = getattr(batch, name)

    def _bind(self, batch: StepBatch, outputs: Mapping[str, NDArray[Any]]) -> None:
        for name in self.names:
            array = np.empty_like(getattr(batch, name), order="C")
            self.io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            self.inputs[name] = array
        for name, array in outputs.items():
            self.io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _even_width(batch: StepBatch) -> StepBatch:
    """Pad a step over prompts to an even width.

    ONNX Runtime's products treat a last single row by another kernel, whose sums are rounded
    differently: of an odd width, the last position would depend on the batch that it is in.
    """
    width = batch.input_ids.shape[1]
    if width % 2 == 0 or (width == 1 and batch.past_lengths.any()):
        return batch
    row, position = np.divmod(batch.logits_index, width)
    return replace(
        batch,
        input_ids=np.pad(batch.input_ids, ((0, 0), (0, 1))),
        logits_index=row * (width + 1) + position,
    )


def _open_session(model: Path, options: Any, library: Path | None, held_to: str | None) -> Any:
    options.enable_mem_pattern = False  # one is kept for each shape: steps have any
    if library is not None:
        check_variables()
        hold_to(options, held_to)
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


def _describe(entry: EngineEntry, manifest: Manifest | None, library: Path | None) -> EngineInfo:
    kv, steps = entry.kv, entry.steps
    known = {"slots": ("float32",), "paged": ("float32", "float16", "int8")}
    if kv.dtype not in known.get(kv.layout, ()):
        legal = "; ".join(f"{layout}: {', '.join(types)}" for layout, types in known.items())
        raise TargetError(
            f"target {entry.target!r}: a cache of layout {kv.layout!r} and type {kv.dtype!r} was "
            f"built, the onnxruntime backend of this version runs {legal}; build the artifact "
            f"again with this version"
        )
    per_token = kv_bytes_per_token(kv)
    assert per_token is not None
    kernels = None if library is None else kernels_of(library, entry.cpu_kernels)
    return EngineInfo(
        vocab_size=entry.vocab_size,
        max_context=entry.limits.max_context,
        max_batch=entry.limits.max_batch,
        steps=StepSupport(steps.decode, steps.prefill, steps.extend),
        kv_layout=kv.layout,
        kv_bytes_per_token=per_token,
        kv_block_size=kv.block_size,
        batch_invariant=entry.batch_invariant,
        chunk_invariant=manifest is not None and manifest.chunk_invariant(entry.plan),
        step_invariant=manifest is not None and manifest.step_invariant(entry.plan),
        cpu_kernels=None if kernels is None else kernels.instructions,
    )
