"""Where a step's inputs and logits are, on the host (pinned) and on the device.

All inputs lie in one block, so that one copy brings them over.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.device.planning import BoundStep, offsets
from enginewright.runtime.cuda.memory import DeviceBuffer, HostBuffer
from enginewright.runtime.cuda.stream import Stream

Buffer = TypeVar("Buffer", HostBuffer, DeviceBuffer)

KEPT_LOGITS_ROWS = 64
"""Rows of logits that memory is kept for; a step that wants more has its own."""


class StepMemory:
    """Room for steps with up to ``input_bytes`` of inputs and ``rows`` rows of logits."""

    def __init__(self, input_bytes: int, rows: int, vocab_size: int) -> None:
        self.input_bytes, self.rows, self._vocab_size = input_bytes, rows, vocab_size
        with ExitStack() as stack:
            self._inputs = _owned(stack, HostBuffer(input_bytes))
            self._logits = _owned(stack, HostBuffer(4 * rows * vocab_size))
            self._device_inputs = _owned(stack, DeviceBuffer(input_bytes, "the inputs of a step"))
            self._device_logits = _owned(
                stack, DeviceBuffer(4 * rows * vocab_size, f"{rows} rows of logits")
            )
            self._owned = stack.pop_all()

    def fits(self, step: BoundStep) -> bool:
        return offsets(step.inputs)[1] <= self.input_bytes and step.logits_rows <= self.rows

    def fill(self, step: BoundStep) -> None:
        """Write the step's inputs to the host's block, whose last copy has ended."""
        starts, _ = offsets(step.inputs)
        for name, array in step.inputs.items():
            self._inputs.array(array.dtype, array.shape, starts[name])[...] = array

    def addresses(self, step: BoundStep) -> list[tuple[str, int, tuple[int, ...] | None]]:
        """What the step binds of this memory: its inputs, and the logits."""
        starts, _ = offsets(step.inputs)
        base = self._device_inputs.address
        inputs: list[tuple[str, int, tuple[int, ...] | None]] = [
            (name, base + starts[name], array.shape) for name, array in step.inputs.items()
        ]
        return [*inputs, ("logits", self._device_logits.address, None)]

    def upload(self, step: BoundStep, stream: Stream) -> None:
        stream.upload(self._device_inputs.address, self._inputs.address, offsets(step.inputs)[1])

    def download(self, step: BoundStep, stream: Stream) -> None:
        size = 4 * step.logits_rows * self._vocab_size
        stream.download(self._logits.address, self._device_logits.address, size)

    def logits(self, rows: int) -> NDArray[np.float32]:
        """The first rows that were brought back, until the next step."""
        array: NDArray[Any] = self._logits.array(np.float32, (rows, self._vocab_size))
        return array

    def free(self) -> None:
        """Give the memory back; twice is allowed."""
        self._owned.close()


class PromptMemory:
    """Memory of steps over prompts, which grows with them and is kept from one to the next."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
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
        self._kept = StepMemory(size, max(step.logits_rows, KEPT_LOGITS_ROWS), self._vocab_size)
        return self._kept

    def free(self) -> None:
        """Give the memory back; twice is allowed."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.free()


def _owned(stack: ExitStack, buffer: Buffer) -> Buffer:
    stack.callback(buffer.free)
    return buffer
