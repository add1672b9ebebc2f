"""The attention kernels on a GPU: the cases of the parity sweep, launched as the runtime does.

Without torch: tensors are uploaded by the runtime's CUDA layer, and compared on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enginewright.plugins.attention.cuda.launch import Shape, launches, workspace_bytes
from enginewright.plugins.attention.cuda.parity import (
    CASES,
    TOLERANCE,
    Case,
    cache_error,
    expected,
    make_inputs,
    out_error,
)
from enginewright.runtime.cuda.driver import Device
from enginewright.runtime.cuda.memory import DeviceBuffer, HostBuffer
from enginewright.runtime.cuda.modules import KernelModules
from enginewright.runtime.cuda.stream import Stream
from enginewright.runtime.errors import DeviceError, MissingDependencyError

pytestmark = pytest.mark.gpu

RUN = [replace(case, io="float16") if case.io == "float32" else case for case in CASES]
"""Kernels for devices compute in float16 or bfloat16."""


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    try:
        found = Device()
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(str(error))
    yield found
    found.close()


@pytest.mark.parametrize("case", RUN, ids=str)
def test_a_case_of_the_sweep(device: Device, case: Case, tmp_path: Path) -> None:
    triton = pytest.importorskip("enginewright.plugins.attention.cuda.compile")
    capability = device.facts().capability
    case = replace(case, capability=capability)
    if case.native_fp8 and float(capability) < 8.9:
        pytest.skip(f"capability {capability} has no fp8")
    compiled = triton.compile_kernels([case.config], [capability], tmp_path)
    arrays = make_inputs(case)
    found = run(case, KernelModules(compiled, capability), arrays)
    wanted = expected(case, arrays)
    assert out_error(case, found, wanted) <= TOLERANCE[case.io]
    limit = TOLERANCE[case.io] if case.cache == "same" else 1
    assert cache_error(case, arrays, found, wanted) <= limit


def run(case: Case, kernels: KernelModules, arrays: dict[str, Any]) -> dict[str, Any]:
    """out and the caches after the launches of the case."""
    with ExitStack() as owned:
        stream = Stream()
        owned.callback(stream.close)
        owned.callback(kernels.close)
        stored = {name: to_device_type(case, name, array) for name, array in arrays.items()}
        buffers = {name: uploaded(stream, owned, array) for name, array in stored.items()}
        workspace = DeviceBuffer(workspace_bytes(case.config, len(case.pasts)), "the workspace")
        owned.callback(workspace.free)
        addresses = {name: buffer.address for name, buffer in buffers.items()}
        addresses["workspace"] = workspace.address
        shape = Shape(*arrays["q"].shape[:2], arrays["block_table"].shape[1])
        for each in launches(case.config, case.capability, shape, case.scalars, addresses):
            kernels.launch(case.config, each, stream.handle)
        return {
            name: from_device_type(case, name, downloaded(stream, buffers[name], stored[name]))
            for name in ("out", "k_cache", "v_cache")
        }


def is_computed(case: Case, name: str) -> bool:
    """Whether the tensor has the type that the kernels compute in."""
    return name in ("q", "k", "v", "out") or (case.cache == "same" and "cache" in name)


def to_device_type(case: Case, name: str, array: NDArray[Any]) -> NDArray[Any]:
    if not is_computed(case, name):
        return np.ascontiguousarray(array)
    if case.io == "float16":
        return array.astype(np.float16)
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_device_type(case: Case, name: str, array: NDArray[Any]) -> NDArray[Any]:
    if not is_computed(case, name):
        return array
    if case.io == "float16":
        return array.astype(np.float32)
    return (array.astype(np.uint32) << 16).view(np.float32)


def uploaded(stream: Stream, owned: ExitStack, array: NDArray[Any]) -> DeviceBuffer:
    host, buffer = HostBuffer(array.nbytes), DeviceBuffer(array.nbytes, "a tensor")
    owned.callback(buffer.free)
    host.array(array.dtype, array.shape)[...] = array
    stream.upload(buffer.address, host.address, array.nbytes)
    stream.synchronize()
    host.free()
    return buffer


def downloaded(stream: Stream, buffer: DeviceBuffer, like: NDArray[Any]) -> NDArray[Any]:
    host = HostBuffer(like.nbytes)
    stream.download(host.address, buffer.address, like.nbytes)
    stream.synchronize()
    found = host.array(like.dtype, like.shape).copy()
    host.free()
    return found
