"""NVIDIA's driver and its GPUs, asked through libcuda alone.

Where there is no driver this says so; it never raises. Reading free memory makes the GPU's primary
context for a moment.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from enginewright.runtime.cuda.driver import DeviceFacts
from enginewright.runtime.doctor.facts import DriverFacts

_NAME_BYTES = 256
_NO_DEVICE = 100
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_VERSION_FILE = "proc/driver/nvidia/version"


def library_name() -> str:
    """What the driver's library is called on this system."""
    return "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def read_driver(library: str | None = None, root: Path = Path("/")) -> DriverFacts:
    """The driver behind ``library`` (by default the system's); ``root`` is where /proc lies."""
    name = library or library_name()
    version = _driver_version(root)
    try:
        cuda = ctypes.CDLL(name)
        code = cuda.cuInit(0)
        if code not in (0, _NO_DEVICE):
            problem = f"the driver does not start ({_error(cuda, code)})"
            return DriverFacts(problem=problem, version=version)
        return DriverFacts(version=version, devices=() if code else tuple(_devices(cuda)))
    except (OSError, AttributeError) as error:  # no such library, or none of its functions
        return DriverFacts(problem=f"{name} cannot be used ({error})", version=version)


def _devices(cuda: ctypes.CDLL) -> Iterator[DeviceFacts]:
    count = _int(cuda.cuDeviceGetCount) or 0
    for index in range(count):
        handle = _int(cuda.cuDeviceGet, index)
        if handle is not None:
            yield _device(cuda, handle)


def _device(cuda: ctypes.CDLL, handle: int) -> DeviceFacts:
    name = ctypes.create_string_buffer(_NAME_BYTES)
    cuda.cuDeviceGetName(name, _NAME_BYTES, handle)
    major = _int(cuda.cuDeviceGetAttribute, _CAPABILITY_MAJOR, handle) or 0
    minor = _int(cuda.cuDeviceGetAttribute, _CAPABILITY_MINOR, handle) or 0
    version = _int(cuda.cuDriverGetVersion) or 0
    total = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
    return DeviceFacts(
        name=name.value.decode("utf-8", "replace") or f"GPU {handle}",
        capability=f"{major}.{minor}",
        cuda=f"{version // 1000}.{version % 1000 // 10}" if version else "",
        total_memory=total.value,
        free_memory=_free_bytes(cuda, handle),
    )


def _free_bytes(cuda: ctypes.CDLL, handle: int) -> int:
    """Free memory, which only a context tells; 0 where the GPU gives none."""
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle) != 0:
        return 0
    if cuda.cuCtxPushCurrent_v2(context) == 0:
        cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    cuda.cuDevicePrimaryCtxRelease_v2(handle)
    return free.value


def _int(function: Callable[..., Any], *arguments: int) -> int | None:
    """What a function writes to the int that its first argument points to."""
    value = ctypes.c_int()
    return value.value if function(ctypes.byref(value), *arguments) == 0 else None


def _error(cuda: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    return f"error {code}: {text.value.decode()}" if text.value else f"error {code}"


def _driver_version(root: Path) -> str | None:
    """The kernel module's version: ``NVRM version: ... Module  580.65.06  ...``."""
    try:
        text = (root / _VERSION_FILE).read_text("utf-8", "replace")
    except OSError:
        return None
    found = re.search(r"\b(\d{3,}(\.\d+)+)\b", text)
    return found[1] if found else None
