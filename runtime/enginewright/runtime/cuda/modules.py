"""The cubins of an engine's kernels, loaded for this device, and how one is launched.

Threads, shared memory and hidden arguments: the table of plugins' kernel_set.py.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial
from typing import Any

from enginewright.plugins.attention.cuda.config import KernelConfig
from enginewright.plugins.attention.cuda.kernel_set import KernelEntry, KernelSet, KernelSetError
from enginewright.plugins.attention.cuda.launch import Launch
from enginewright.runtime.cuda.driver import bindings, call, release_quietly
from enginewright.runtime.errors import DeviceError

THREADS_OF_A_WARP = 32
STATIC_SHARED_LIMIT = 48 << 10
"""Shared memory above which a kernel has to be allowed to have it."""

_TYPES: dict[str, Any] = {
    "pointer": ctypes.c_void_p,
    "int32": ctypes.c_int32,
    "float32": ctypes.c_float,
}


@dataclass(frozen=True)
class _Loaded:
    entry: KernelEntry
    function: Any


class KernelModules:
    """The kernels of a set for one compute capability; each is loaded at its first launch.

    So a first launch cannot be captured in a graph.
    """

    def __init__(self, kernels: KernelSet, capability: str) -> None:
        self.capability = capability
        self._set = kernels
        self._modules: dict[str, Any] = {}
        self._loaded: dict[tuple[KernelConfig, str], _Loaded] = {}

    def launch(self, config: KernelConfig, launch: Launch, stream: int) -> None:
        """Queue a launch on the stream at that address.

        Raises DeviceError, with the code ``plugin_kernels`` for a kernel that the set lacks.
        """
        loaded = self._kernel(config, launch.kernel)
        entry = loaded.entry
        call(
            "cuLaunchKernel",
            loaded.function,
            *launch.grid,
            *(THREADS_OF_A_WARP * entry.num_warps, 1, 1),
            entry.shared_bytes,
            stream,
            parameters(launch, entry.hidden_pointers),
            0,
        )

    def close(self) -> None:
        """Unload all; twice is allowed."""
        for module in self._modules.values():
            release_quietly(partial(call, "cuModuleUnload", module))
        self._modules, self._loaded = {}, {}

    def _kernel(self, config: KernelConfig, kernel: str) -> _Loaded:
        found = self._loaded.get((config, kernel))
        if found is None:
            try:
                entry = self._set.find(config, kernel, self.capability)
                function = self._function(entry)
            except KernelSetError as error:
                raise DeviceError(str(error), "plugin_kernels") from error
            found = self._loaded[config, kernel] = _Loaded(entry, function)
        return found

    def _function(self, entry: KernelEntry) -> Any:
        module = self._modules.get(entry.file)
        if module is None:
            module = call("cuModuleLoadData", self._set.cubin(entry))
            self._modules[entry.file] = module
        function = call("cuModuleGetFunction", module, entry.symbol.encode())
        if entry.shared_bytes > STATIC_SHARED_LIMIT:
            which = bindings().CUfunction_attribute
            limit = which.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            call("cuFuncSetAttribute", function, limit, entry.shared_bytes)
        return function


def parameters(launch: Launch, hidden_pointers: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Values and C types of a kernel's parameters, as cuda-bindings takes them.

    Null pointers stand for arguments that are left out, and for the hidden ones at the end.
    """
    values = [argument.value or 0 for argument in launch.arguments]
    types = [_TYPES[argument.kind] for argument in launch.arguments]
    hidden = (0,) * hidden_pointers
    return (*values, *hidden), (*types, *(ctypes.c_void_p for _ in hidden))
