"""Which TensorRT is installed, and what is said where one, a GPU or a compiler is missing."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from enginewright.builder.targets import target_of
from enginewright.builder.targets.tensorrt import kernels
from enginewright.builder.targets.tensorrt.library import (
    Library,
    find_library,
    gpu_capability,
)
from enginewright.runtime.errors import MissingDependencyError


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorrt", r"TensorRT, which is not installed: pip install 'enginewright\[tensorrt\]'"),
        ("tensorrt", r"NVIDIA's own index.*tensorrt_rtx needs neither TensorRT nor a GPU"),
        ("tensorrt_rtx", r"pip install 'enginewright\[rtx\]'"),
    ],
)
def test_a_missing_package_is_answered_by_the_command(
    monkeypatch: pytest.MonkeyPatch, name: Any, said: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=said):
        target_of(name).check("native")


def test_a_missing_compiler_of_kernels_is_answered_by_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingDependencyError, match=r"enginewright\[kernels\].*native needs none"):
        kernels.check_compiler()


class Driver:
    """libcuda as far as it is asked: a status from cuInit, and a GPU of capability 9.0."""

    def __init__(self, status: int) -> None:
        self._status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._status

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_the_gpu_is_asked_for_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(0))
    assert gpu_capability() == "9.0"


def test_a_driver_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(100))
    with pytest.raises(MissingDependencyError, match=r"CUDA error 100; nvidia-smi.*tensorrt_rtx"):
        gpu_capability()


def test_the_libraries_get_their_plain_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("libone.so.1", "libtwo.so.11", "readme.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    with Library("tensorrt_rtx", "1.7", tmp_path).environment() as environment:
        links, rest = environment["LD_LIBRARY_PATH"].split(os.pathsep)
        assert rest == "/elsewhere"
        assert {path.name for path in Path(links).iterdir()} == {"libone.so", "libtwo.so"}
        assert Path(links, "libtwo.so").read_text() == "libtwo.so.11"
    assert not Path(links).exists()


def test_the_installed_one_has_a_version_and_a_folder() -> None:
    pytest.importorskip("tensorrt_rtx")
    found = find_library("tensorrt_rtx")
    assert found.version.startswith("1.")
    assert found.folder is not None
    assert list(found.folder.glob("libtensorrt_rtx.so.*"))
