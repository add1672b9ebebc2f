"""What tests of the CPU's operators share: the library, and runs with the kernels asked for."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

INSTRUCTION_SETS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx2vnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx512vnni": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    "amx": {"avx512vbmi", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16"},
}
"""What the environment variable may ask for, and the processor's flags that it takes."""


def skip_without(kernels: str) -> None:
    """Skip where the processor lacks what these kernels take."""
    if missing := INSTRUCTION_SETS[kernels] - set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")


@pytest.fixture
def needs(cpu_kernels: str) -> None:
    """The test is for a processor that has the kernels."""
    skip_without(cpu_kernels)


@pytest.fixture(scope="session")
def library() -> Path:
    """The operators, compiled once a session."""
    from enginewright.builder.targets.operators import compile_library, find_compiler

    if find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    made = compile_library()
    assert made is not None
    return made


@pytest.fixture(scope="session")
def arrays_of(
    library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], dict[str, Any]]:
    """``arrays_of(script, kernels)``: what the script saves, run once with kernels of that name.

    It is given the library and where to save. Skips where the processor lacks what they take: it
    would fall back to lesser ones.
    """
    folder = tmp_path_factory.mktemp("results")

    @functools.cache
    def computed(script: str, kernels: str) -> dict[str, Any]:
        results = folder / f"{Path(script).stem}-{kernels}.npz"
        environment = os.environ | {"ENGINEWRIGHT_CPU_KERNELS": kernels}
        command = [sys.executable, script, str(library), str(results)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with np.load(results) as found:
            return dict(found)

    def arrays_of(script: str, kernels: str) -> dict[str, Any]:
        skip_without(kernels)
        return computed(script, kernels)

    return arrays_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``cpu_kernels``: each of the names in the test file's KERNELS."""
    if "cpu_kernels" in metafunc.fixturenames:
        metafunc.parametrize("cpu_kernels", metafunc.module.KERNELS)


@pytest.fixture
def compute_with(request: pytest.FixtureRequest, arrays_of: Any) -> Callable[[str], dict[str, Any]]:
    """What the test file saves as a script, with kernels of that name."""
    return functools.partial(arrays_of, str(request.path))


@pytest.fixture
def computed(cpu_kernels: str, compute_with: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return compute_with(cpu_kernels)
