"""Whole engines on the device, for the backends that are installed: pytest's gpu-marked tests."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from scripts.gpu_check.report import Row, skipped

_SUITES = {
    "onnxruntime (cuda)": ("onnxruntime", "tests/runtime/test_onnxruntime_cuda.py"),
    "tensorrt": ("tensorrt", "tests/runtime/test_tensorrt_device.py"),
    "tensorrt_rtx": ("tensorrt_rtx", "tests/runtime/test_tensorrt_device.py"),
}


def rows() -> list[Row]:
    """One row a backend."""
    return [_row(name, package, suite) for name, (package, suite) in _SUITES.items()]


def _row(name: str, package: str, suite: str) -> Row:
    if importlib.util.find_spec("pytest") is None:
        return skipped("engine", name, "pytest is not installed")
    if importlib.util.find_spec(package) is None:
        return skipped("engine", name, f"{package} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", suite]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    if " passed" not in last and done.returncode == 0:
        return skipped("engine", name, last)
    return Row("engine", name, last, verdict="ok" if done.returncode == 0 else "MISSED")
