"""The CUDA driver: what device is there, and calls whose failures are DeviceErrors.

``cuda-bindings`` is imported on the first call. It loads libcuda when a function of it is called
first, so a machine without a driver is told so, whatever is installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.errors import DeviceCode, DeviceError, MissingDependencyError

_OUT_OF_MEMORY, _NO_DEVICE = 2, 100
_DRIVER_TOO_OLD = (34, 35, 803, 804)
"""A stub library, and drivers older than what is installed over them."""


@dataclass(frozen=True)
class DeviceFacts:
    """A GPU. ``capability``: such as "8.6"; ``cuda``: the newest CUDA that its driver knows, such
    as "13.0"; memory in bytes."""

    name: str
    capability: str
    cuda: str
    total_memory: int
    free_memory: int


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver API: its value, a tuple of several, or None.

    Raises DeviceError, MissingDependencyError without cuda-bindings.
    """
    code, *values = invoke(name, *arguments)
    if int(code) != 0:
        raise failure(name, code)
    return values[0] if len(values) == 1 else tuple(values) or None


def invoke(name: str, *arguments: Any) -> tuple[Any, ...]:
    """Call a function of the driver API: its result code, then its values."""
    driver = bindings()
    try:
        return tuple(getattr(driver, name)(*arguments))
    except (RuntimeError, OSError, ImportError) as error:  # what a missing library is told by
        raise DeviceError(
            f"no NVIDIA driver on this machine: libcuda cannot be loaded "
            f"({_first_line(error)}). Install the NVIDIA driver, or run an artifact of target cpu",
            "no_driver",
        ) from error


def bindings() -> Any:
    """cuda-bindings' module of the driver API."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cuda":
            raise
        raise MissingDependencyError(
            "GPUs are driven through cuda-bindings, which is not installed: "
            "pip install 'cuda-bindings>=13'"
        ) from error


def failure(name: str, code: Any) -> DeviceError:
    """The error that a result code of the driver stands for."""
    number = int(code)
    text = f"{name}: {getattr(code, 'name', code)} ({number})"
    kind: DeviceCode = "device_failed"
    if number == _NO_DEVICE:
        kind = "no_device"
        text += ". The NVIDIA driver sees no GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES"
    elif number in _DRIVER_TOO_OLD:
        kind = "driver_version"
        text += ". The NVIDIA driver does not fit what is installed over it; update the driver"
    elif number == _OUT_OF_MEMORY:
        kind = "out_of_memory"
        text += ". The GPU's memory is full; end what else runs on it"
    return DeviceError(text, kind)


class Device:
    """The first visible GPU, in its primary context, which TensorRT uses too."""

    def __init__(self, ordinal: int = 0) -> None:
        call("cuInit", 0)
        if ordinal >= int(call("cuDeviceGetCount")):
            raise failure("cuDeviceGetCount", _NO_DEVICE)
        self._device = call("cuDeviceGet", ordinal)
        self._context = call("cuDevicePrimaryCtxRetain", self._device)
        self.use()

    def use(self) -> None:
        """Make this thread's calls go to the device."""
        call("cuCtxSetCurrent", self._context)

    def facts(self) -> DeviceFacts:
        """What the device is, and has free now."""
        free, total = call("cuMemGetInfo")
        version = int(call("cuDriverGetVersion"))
        raw: bytes = call("cuDeviceGetName", 128, self._device)
        return DeviceFacts(
            name=raw.split(b"\0", 1)[0].decode("utf-8", "replace"),
            capability=f"{self._attribute('MAJOR')}.{self._attribute('MINOR')}",
            cuda=f"{version // 1000}.{version % 1000 // 10}",
            total_memory=int(total),
            free_memory=int(free),
        )

    def close(self) -> None:
        """Give the context back. What was allocated in it must be freed already."""
        call("cuDevicePrimaryCtxRelease", self._device)

    def _attribute(self, part: str) -> int:
        names = bindings().CUdevice_attribute
        which = getattr(names, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}")
        return int(call("cuDeviceGetAttribute", which, self._device))


def device_facts() -> DeviceFacts:
    """The facts of the first visible GPU. Raises DeviceError where there is none."""
    device = Device()
    try:
        return device.facts()
    finally:
        device.close()


def release_quietly(release: Callable[[], None]) -> None:
    """Free something while an error is on its way: a second failure says nothing new."""
    try:
        release()
    except DeviceError:
        return


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
