"""What the doctor reads of a machine: drivers that are compiled for the test, made-up /proc and
/sys, and this machine as it is."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from enginewright.runtime.doctor.driver import library_name, read_driver
from enginewright.runtime.doctor.host import read_host
from enginewright.runtime.doctor.installed import read_installed

_NEEDED = """
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return INIT; }
int cuGetErrorString(int code, const char **text) { *text = "no such luck"; return 0; }
"""
_DEVICES = """
static int current = -1;
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device ? "Second" : "First", size); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? (device ? 12 : 8) : which == 76 ? (device ? 0 : 6) : -1; return 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = (size_t)24 << 30; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(ptrdiff_t)(device + 1); return device ? 999 : 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxPushCurrent_v2(void *context) { current = (int)(ptrdiff_t)context; return 0; }
int cuCtxPopCurrent_v2(void **context) { current = -1; return 0; }
int cuMemGetInfo_v2(size_t *available, size_t *total) {
    if (current != 1) return 201;
    *available = (size_t)20 << 30; *total = (size_t)24 << 30; return 0; }
"""
_MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Thu Jul 31 2025\n"


def driver(folder: Path, init: int, source: str = _NEEDED + _DEVICES) -> str:
    """A compiled library whose cuInit answers so."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    (folder / "driver.c").write_text(source)
    command = [compiler, "-shared", "-fPIC", f"-DINIT={init}", "driver.c", "-o", "libdriver.so"]
    subprocess.run(command, cwd=folder, check=True)
    return str(folder / "libdriver.so")


def test_the_driver_tells_of_its_gpus(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(_MODULE)
    facts = read_driver(driver(tmp_path, 0), tmp_path)
    assert (facts.problem, facts.version) == (None, "580.65.06")
    first, second = facts.devices
    assert (first.name, first.capability, first.cuda) == ("First", "8.6", "13.2")
    assert (first.total_memory, first.free_memory) == (24 << 30, 20 << 30)
    assert (second.name, second.capability) == ("Second", "12.0")
    assert second.free_memory == 0, "it gave no context"


def test_a_driver_without_gpus(tmp_path: Path) -> None:
    facts = read_driver(driver(tmp_path, 100), tmp_path)
    assert facts.problem is None
    assert not facts.devices


def test_a_driver_that_does_not_start(tmp_path: Path) -> None:
    facts = read_driver(driver(tmp_path, 804), tmp_path)
    assert facts.problem == "the driver does not start (error 804: no such luck)"


def test_a_library_that_lacks_a_function(tmp_path: Path) -> None:
    facts = read_driver(driver(tmp_path, 0, _NEEDED), tmp_path)
    assert facts.problem is not None
    assert "cuDeviceGetCount" in facts.problem


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "libcuda.so.1"
    path.write_bytes(b"\x7fELF, but not really")
    problem = read_driver(str(path), tmp_path).problem
    assert problem is not None
    assert "cannot be used" in problem


def test_this_machine_as_it_is() -> None:
    try:
        ctypes.CDLL(library_name())
    except OSError:
        facts = read_driver()
        assert facts.problem is not None
        assert library_name() in facts.problem
        assert not facts.devices
    else:
        assert read_driver() == read_driver()


@pytest.mark.gpu
def test_the_gpu_of_this_machine() -> None:
    facts = read_driver()
    if not facts.devices:
        pytest.skip(f"no GPU here: {facts.problem or 'the driver shows none'}")
    for device in facts.devices:
        assert float(device.capability) >= 7.5
        assert 0 < device.free_memory <= device.total_memory


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}
V2 = {"proc/self/cgroup": "0::/a/b\n"}
V1 = {"proc/self/cgroup": "4:memory:/a\n3:cpu:/\n"}
_MAX, _CURRENT = "sys/fs/cgroup/a/memory.max", "sys/fs/cgroup/a/memory.current"
_LIMIT = "sys/fs/cgroup/memory/a/memory.limit_in_bytes"
_USAGE = "sys/fs/cgroup/memory/a/memory.usage_in_bytes"


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 8000 * 1024),
        (V2, 8000 * 1024),
        ({**V2, _MAX: "5000000\n", _CURRENT: "1000000\n"}, 4_000_000),
        ({**V2, _MAX: "max\n", _CURRENT: "1000000\n"}, 8000 * 1024),
        ({**V2, _MAX: "5000000\n", _CURRENT: "6000000\n"}, 0),
        (
            {
                **V2,
                _MAX: "5000000\n",
                _CURRENT: "3000000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 1000000\n",
            },
            3_000_000,
        ),
        ({**V1, _LIMIT: "5000000\n", _USAGE: "1000000\n"}, 4_000_000),
        ({**V1, _LIMIT: "9223372036854771712\n", _USAGE: "1000000\n"}, 8000 * 1024),
    ],
)
def test_memory_is_what_the_container_leaves(
    tmp_path: Path, files: dict[str, str], available: int
) -> None:
    assert read_host(system(tmp_path, {**MEMINFO, **files})).available_bytes == available


def test_the_processor_and_its_features(tmp_path: Path) -> None:
    cpuinfo = "processor : 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2\n\nprocessor : 1\n"
    host = read_host(system(tmp_path, {"proc/cpuinfo": cpuinfo}))
    assert (host.processor, host.features) == ("A CPU", frozenset({"fpu", "avx2"}))
    assert host.available_bytes is None


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    host = read_host(tmp_path)
    assert host.features is None
    assert host.processor


def test_what_is_installed_here() -> None:
    pytest.importorskip("onnxruntime")
    installed = read_installed()
    assert installed.versions["onnxruntime"][0].isdigit()
    assert installed.least["onnxruntime"] == "1.31"
    assert "EnginewrightCachedAttention" in installed.plugins
