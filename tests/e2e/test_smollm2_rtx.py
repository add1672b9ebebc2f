"""The published TensorRT-RTX recipe, built for all its capabilities on a machine without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enginewright.runtime.artifact.artifact import Artifact

pytest.importorskip("tensorrt_rtx")

MOST_MEMORY = 2.5
"""Peak anonymous memory of the compiling process, in sizes of the engine."""


@pytest.fixture(scope="module")
def rtx(built: Callable[[str], Path]) -> Path:
    return built("rtx-fp16")


def test_one_engine_for_all_its_capabilities(rtx: Path) -> None:
    from enginewright.builder.targets.tensorrt.header import check_header

    artifact = Artifact.open(rtx)
    engine = artifact.engine()
    assert engine.nvidia is not None
    assert engine.nvidia.capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert engine.nvidia.later
    check_header(rtx / engine.model, engine.nvidia.capabilities)
    assert [profile.name for profile in engine.nvidia.profiles] == ["decode", "prefill"]
    assert len(engine.nvidia.aliases) == 60
    report = json.loads((rtx / "evidence" / "compile.json").read_text())
    assert report["anonymous_peak_over_engine"] < MOST_MEMORY, report


def test_the_graph_passed_and_the_device_did_not_run(rtx: Path) -> None:
    found = json.loads((rtx / "manifest.json").read_text())["conformance"]["native"]
    assert (found["graph"], found["device"]) == ("passed", "not run")


@pytest.mark.parametrize(
    ("device", "runs"), [("8.6:24GiB", True), ("12.1:96GiB", True), ("7.5:16GiB", False)]
)
def test_doctor_tells_from_headers_where_it_will_run(rtx: Path, device: str, runs: bool) -> None:
    command = [sys.executable, "-m", "enginewright.cli", "doctor", str(rtx), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if runs else 1), done.stdout + done.stderr
    assert ("[capability]" in done.stdout) != runs
