"""Memory of the device, and pinned memory of the host that copies to it run from.

Freeing waits for nothing: the owner synchronizes the stream that uses the memory first.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from enginewright.runtime.cuda.driver import call, failure, invoke
from enginewright.runtime.errors import DeviceError


def size_text(size: int) -> str:
    """A number of bytes, for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def out_of_memory(what: str, asked: int, free: int, total: int) -> DeviceError:
    """The error for memory that the device does not have."""
    return DeviceError(
        f"out of device memory: {what} takes {size_text(asked)}, {size_text(free)} of "
        f"{size_text(total)} are free. Lower max_num_seqs or max_model_len, end what else runs "
        f"on the GPU, or build with a smaller precision",
        "out_of_memory",
    )


class DeviceBuffer:
    """``size`` bytes at ``address`` of the device; ``what`` names them in errors."""

    def __init__(self, size: int, what: str) -> None:
        self.size, self.address = size, 0
        if size == 0:
            return
        code, *values = invoke("cuMemAlloc", size)
        if int(code) == 2:
            free, total = call("cuMemGetInfo")
            raise out_of_memory(what, size, int(free), int(total))
        if int(code) != 0:
            raise failure("cuMemAlloc", code)
        self.address = int(values[0])

    def free(self) -> None:
        """Give the memory back; twice is allowed."""
        if self.address:
            call("cuMemFree", self.address)
        self.address = self.size = 0


class HostBuffer:
    """Pinned memory of the host; arrays taken from it are valid until it is freed."""

    def __init__(self, size: int) -> None:
        self.size = max(size, 1)
        self.address = int(call("cuMemHostAlloc", self.size, 0))

    def array(self, dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """An array over the memory from ``offset`` on."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        assert offset + size <= self.size
        raw = (ctypes.c_uint8 * size).from_address(self.address + offset)
        array: NDArray[Any] = np.frombuffer(raw, dtype).reshape(shape)  # type: ignore[call-overload]
        return array

    def free(self) -> None:
        """Give the memory back; twice is allowed."""
        if self.address:
            call("cuMemFreeHost", self.address)
        self.address = 0
