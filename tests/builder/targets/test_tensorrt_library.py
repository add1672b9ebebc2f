"""Which TensorRT is installed, and what is said where one, a GPU or a compiler is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from enginewright.builder.targets import target_of
from enginewright.builder.targets.tensorrt import kernels, library
from enginewright.builder.targets.tensorrt.library import Library, find_library
from enginewright.runtime.cuda.driver import DeviceFacts
from enginewright.runtime.doctor.facts import DriverFacts
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


def test_the_gpu_is_asked_for_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(DeviceFacts(name, name, "13.0", 1, 1) for name in ("9.0", "8.6"))
    monkeypatch.setattr(library, "read_driver", lambda: DriverFacts(devices=found))
    assert library.gpu_capability() == "9.0"


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (DriverFacts(), r"the driver finds none.*nvidia-smi.*tensorrt_rtx needs neither"),
        (DriverFacts(problem="libcuda.so.1 is not there"), r"build: libcuda\.so\.1 is not there"),
    ],
)
def test_a_missing_gpu_is_told(
    monkeypatch: pytest.MonkeyPatch, driver: DriverFacts, said: str
) -> None:
    monkeypatch.setattr(library, "read_driver", lambda: driver)
    with pytest.raises(MissingDependencyError, match=said):
        library.gpu_capability()


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
