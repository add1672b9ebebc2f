"""A stream: copies and kernels that run in the order in which they were queued."""

from __future__ import annotations

from enginewright.runtime.cuda.driver import bindings, call


class Stream:
    """A stream of its own. ``handle``: its address, as TensorRT and kernels take it."""

    def __init__(self) -> None:
        nonblocking = bindings().CUstream_flags.CU_STREAM_NON_BLOCKING
        self.handle = int(call("cuStreamCreate", int(nonblocking)))

    def synchronize(self) -> None:
        """Wait for all that was queued. An error of an earlier kernel is raised here."""
        call("cuStreamSynchronize", self.handle)

    def upload(self, device: int, host: int, size: int) -> None:
        """Copy from pinned host memory; addresses, and bytes."""
        call("cuMemcpyHtoDAsync", device, host, size, self.handle)

    def download(self, host: int, device: int, size: int) -> None:
        """Copy to pinned host memory."""
        call("cuMemcpyDtoHAsync", host, device, size, self.handle)

    def copy(self, destination: int, source: int, size: int) -> None:
        """Copy within the device."""
        call("cuMemcpyDtoDAsync", destination, source, size, self.handle)

    def copy_rows(
        self, destination: int, source: int, size: int, rows: int, strides: tuple[int, int]
    ) -> None:
        """Copy ``rows`` runs of ``size`` bytes; ``strides``: from one run to the next, of the
        destination and of the source."""
        driver = bindings()
        shape = driver.CUDA_MEMCPY2D()
        shape.dstMemoryType = shape.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        shape.dstDevice, shape.srcDevice = destination, source
        shape.dstPitch, shape.srcPitch = strides
        shape.WidthInBytes, shape.Height = size, rows
        call("cuMemcpy2DAsync", shape, self.handle)

    def clear(self, address: int, size: int) -> None:
        """Set bytes to zero."""
        call("cuMemsetD8Async", address, 0, size, self.handle)

    def close(self) -> None:
        """Give the stream back; twice is allowed."""
        if self.handle:
            call("cuStreamDestroy", self.handle)
        self.handle = 0
