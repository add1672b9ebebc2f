"""The host driver, compiled, and what runs a scenario over it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
Scenario = Callable[..., None]


@pytest.fixture(scope="session")
def host_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1 whose device is the host's memory."""
    if sys.platform != "linux":
        pytest.skip("the host driver is loaded under Linux's name for libcuda")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    folder = tmp_path_factory.mktemp("driver")
    name = "libcuda.so.1"
    source = str(HERE / "host_driver.c")
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", name, source, "-ldl"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.fixture
def on_host_driver(host_driver: Path, tmp_path: Path) -> Scenario:
    """``on_host_driver(name, *arguments, memory=..., devices=...)`` runs one of scenarios.py."""

    def run(name: str, *arguments: str, memory: int = 1 << 30, devices: int = 1) -> None:
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(host_driver),
            "HOST_DRIVER_MEMORY": str(memory),
            "HOST_DRIVER_DEVICES": str(devices),
            "XDG_CACHE_HOME": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, str(HERE / "scenarios.py"), name, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "passed\n"

    return run
