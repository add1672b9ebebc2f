"""Where a step's inputs and outputs are, on the host (pinned) and on the device.

All inputs lie in one block, so that one copy brings them over. What comes back is one block, too:

| engine            | what comes back after each step                           | and on demand  |
|-------------------|-----------------------------------------------------------|----------------|
| with logits alone | logits [L, V]                                             |                |
| with top_logits   | top_logits, top_ids [L, K], log_normalizer [L]            | rows of logits |
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.device.planning import BoundStep, offsets
from enginewright.runtime.cuda.memory import DeviceBuffer, HostBuffer
from enginewright.runtime.cuda.stream import Stream
from enginewright.runtime.engine import ReducedLogits, StepLogits, reduced_outputs

Buffer = TypeVar("Buffer", HostBuffer, DeviceBuffer)

KEPT_LOGITS_ROWS = 64
"""Rows of logits that memory is kept for; a step that wants more has its own."""


class StepMemory:
    """Room for steps with up to ``input_bytes`` of inputs and ``rows`` rows of logits.

    ``top``: K, or 0 for an engine with logits alone.
    """

    def __init__(self, input_bytes: int, rows: int, vocab_size: int, top: int = 0) -> None:
        self.input_bytes, self.rows, self._vocab_size = input_bytes, rows, vocab_size
        self._top = top
        top_bytes = offsets(reduced_outputs(rows, top))[1] if top else 0
        with ExitStack() as stack:
            self._inputs = _owned(stack, HostBuffer(input_bytes))
            self._logits = _owned(stack, HostBuffer(4 * rows * vocab_size))
            self._device_inputs = _owned(stack, DeviceBuffer(input_bytes, "the inputs of a step"))
            self._device_logits = _owned(
                stack, DeviceBuffer(4 * rows * vocab_size, f"{rows} rows of logits")
            )
            self._reduced = _owned(stack, HostBuffer(top_bytes))
            self._device_reduced = _owned(stack, DeviceBuffer(top_bytes, "the highest logits"))
            self._owned = stack.pop_all()

    def fits(self, step: BoundStep) -> bool:
        return offsets(step.inputs)[1] <= self.input_bytes and step.logits_rows <= self.rows

    def fill(self, step: BoundStep) -> None:
        """Write the step's inputs to the host's block, whose last copy has ended."""
        starts, _ = offsets(step.inputs)
        for name, array in step.inputs.items():
            self._inputs.array(array.dtype, array.shape, starts[name])[...] = array

    def addresses(self, step: BoundStep) -> list[tuple[str, int, tuple[int, ...] | None]]:
        """What the step binds of this memory: its inputs, and its outputs without a shape."""
        starts, _ = offsets(step.inputs)
        base = self._device_inputs.address
        inputs: list[tuple[str, int, tuple[int, ...] | None]] = [
            (name, base + starts[name], array.shape) for name, array in step.inputs.items()
        ]
        outputs = {"logits": self._device_logits.address}
        if self._top:
            places, _ = offsets(reduced_outputs(step.logits_rows, self._top))
            first = self._device_reduced.address
            outputs |= {name: first + place for name, place in places.items()}
        return [*inputs, *((name, address, None) for name, address in outputs.items())]

    def upload(self, step: BoundStep, stream: Stream) -> None:
        stream.upload(self._device_inputs.address, self._inputs.address, offsets(step.inputs)[1])

    def download(self, step: BoundStep, stream: Stream) -> None:
        """What comes back after each step."""
        if self._top:
            size = offsets(reduced_outputs(step.logits_rows, self._top))[1]
            stream.download(self._reduced.address, self._device_reduced.address, size)
        else:
            self._download_rows(0, step.logits_rows, stream)

    def logits(self, step: BoundStep, stream: Stream) -> StepLogits:
        """Of a step whose download has ended, those that it wanted, until the next step."""
        if not self._top:
            return self._rows(0, step.wanted)
        shapes = reduced_outputs(step.logits_rows, self._top)
        top_logits, top_ids, log_normalizer = (
            self._reduced.array(shapes[name].dtype, shapes[name].shape, start)[: step.wanted]
            for name, start in offsets(shapes)[0].items()
        )

        def bring(start: int, end: int) -> NDArray[np.float32]:
            self._download_rows(start, end, stream)
            stream.synchronize()
            return self._rows(start, end)

        return ReducedLogits(top_logits, top_ids, log_normalizer, bring)

    def _download_rows(self, start: int, end: int, stream: Stream) -> None:
        first, size = (4 * self._vocab_size * rows for rows in (start, end - start))
        stream.download(self._logits.address + first, self._device_logits.address + first, size)

    def _rows(self, start: int, end: int) -> NDArray[np.float32]:
        shape, first = (end - start, self._vocab_size), 4 * start * self._vocab_size
        array: NDArray[Any] = self._logits.array(np.float32, shape, first)
        return array

    def free(self) -> None:
        """Give the memory back; twice is allowed."""
        self._owned.close()


class PromptMemory:
    """Memory of steps over prompts, which grows with them and is kept from one to the next."""

    def __init__(self, vocab_size: int, top: int = 0) -> None:
        self._vocab_size, self._top = vocab_size, top
        self._kept: StepMemory | None = None

    def take(self, step: BoundStep) -> StepMemory:
        """Memory for the step: what is kept, or larger; what is far too large is freed.

        Raises DeviceError where there is none; then nothing is kept.
        """
        kept, size = self._kept, offsets(step.inputs)[1]
        if kept is not None:
            surplus = kept.rows > KEPT_LOGITS_ROWS >= step.logits_rows
            if kept.fits(step) and not surplus:
                return kept
            size = max(size, kept.input_bytes)
        self.free()  # first, as both together need not fit
        rows = max(step.logits_rows, KEPT_LOGITS_ROWS)
        self._kept = StepMemory(size, rows, self._vocab_size, self._top)
        return self._kept

    def free(self) -> None:
        """Give the memory back; twice is allowed."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.free()


def _owned(stack: ExitStack, buffer: Buffer) -> Buffer:
    stack.callback(buffer.free)
    return buffer
