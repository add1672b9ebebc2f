"""The device: what it is, what is installed, and how fast its memory is read."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shutil
import subprocess
from typing import Any

import torch

from scripts.gpu_check.report import Row
from scripts.gpu_check.timing import microseconds

PACKAGES = (
    "torch",
    "triton",
    "cuda-bindings",
    "numpy",
    "onnxruntime-gpu",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
)
_READ_BYTES = 4 << 30


def facts() -> dict[str, Any]:
    """The machine and the versions of what is installed on it."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def read_bandwidth() -> float:
    """Bytes a second of a plain sum over a buffer far larger than the caches: the floor's slope."""
    buffer = torch.ones(_READ_BYTES // 4, dtype=torch.float32, device="cuda")
    return _READ_BYTES / microseconds(buffer.sum) * 1e6


def bandwidth_row(bandwidth: float) -> Row:
    speed = bandwidth / 1e9
    figures = {"gigabytes_per_second": speed}
    return Row("device", "memory read (sum of 4 GiB)", f"{speed:.0f} GB/s", figures=figures)


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown: there is no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("\n")[0] or "unknown: nvidia-smi says nothing"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
