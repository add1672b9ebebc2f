"""Tests that need a GPU, for the backends that are installed: pytest in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.gpu_check.report import Row, skipped

_NO_TESTS_RAN = 5
"""pytest's exit code where every test was left out."""
_BROKEN = (2, 3, 4)
"""Its exit codes where tests could not be collected or run: ours to mend, so not passed over."""


@dataclass(frozen=True)
class Suite:
    """Tests, and the packages that they cannot do without."""

    name: str
    packages: tuple[str, ...]
    path: str
    options: tuple[str, ...] = ()


_SUITES = (
    Suite(
        "kernels, all cases of the sweep",
        ("triton",),
        "tests/runtime/cuda/test_kernels_device.py",
        ("--noconftest",),
    ),
    Suite(
        "onnxruntime (cuda)", ("onnxruntime", "onnx"), "tests/runtime/cuda/test_onnxruntime_cuda.py"
    ),
    Suite(
        "tensorrt",
        ("tensorrt", "onnx"),
        "tests/runtime/test_tensorrt_device.py",
        ("-k", "not rtx"),
    ),
    Suite(
        "tensorrt_rtx",
        ("tensorrt_rtx", "onnx"),
        "tests/runtime/test_tensorrt_device.py",
        ("-k", "rtx"),
    ),
)


def rows() -> Iterator[Row]:
    """One row a suite."""
    for suite in _SUITES:
        missing = [name for name in ("pytest", *suite.packages) if not _is_installed(name)]
        if missing:
            yield skipped("tests", suite.name, f"{', '.join(missing)} not installed")
        else:
            yield _run(suite)


def _run(suite: Suite) -> Row:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["-W", "default", *suite.options, suite.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout.strip() or done.stderr.strip()).rpartition("\n")[2]
    if done.returncode in _BROKEN:
        return Row("tests", suite.name, last, verdict="FAILED")
    if done.returncode == _NO_TESTS_RAN or (done.returncode == 0 and " passed" not in last):
        return skipped("tests", suite.name, last)
    return Row("tests", suite.name, last, verdict="ok" if done.returncode == 0 else "MISSED")


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
