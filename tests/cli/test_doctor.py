"""``doctor``: what it prints, its JSON, its exit codes, and wrong input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginewright.cli.main import main
from enginewright.runtime.doctor.codes import MEANINGS
from enginewright.runtime.doctor.driver import read_driver
from enginewright.runtime.errors import DeviceCode

ROOT = Path(__file__).resolve().parents[2]


def doctor(folder: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["doctor", str(folder), *arguments])


def test_a_cpu_artifact_runs_here(tiny_artifact: Path) -> None:
    result = doctor(tiny_artifact)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "verdict: runs here, plan plain (cpu)"


def test_what_is_missing_is_said_with_what_to_do(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_artifact, tmp_path / "copy")
    (folder / "tokenizer.json").unlink()
    result = doctor(folder)
    assert result.exit_code == 1
    assert "[file_missing]" in result.stdout
    assert "to do: copy the artifact again" in result.stdout
    assert result.stdout.endswith("verdict: does not run here\n")
    assert result.stderr == ""


@pytest.mark.skipif(bool(read_driver().devices), reason="this machine has a GPU")
def test_an_engine_for_a_gpu_does_not_run_without_one(rtx_artifact: Path) -> None:
    result = doctor(rtx_artifact)
    assert result.exit_code == 1
    assert "[no_driver]" in result.stdout or "[no_device]" in result.stdout
    assert "Traceback" not in result.output


def test_a_fleet_can_be_asked_without_a_gpu(rtx_artifact: Path) -> None:
    fits, small, other = (
        doctor(rtx_artifact, "--device", it) for it in ("8.6:8GiB", "8.6:1GiB", "8.9")
    )
    assert fits.exit_code == 0, fits.output
    assert "verdict: runs on the described device, plan engine (tensorrt_rtx)" in fits.stdout
    assert small.exit_code == other.exit_code == 1
    assert "[out_of_memory]" in small.stdout
    assert "[capability]" in other.stdout


def test_limits_are_asked_about(rtx_artifact: Path) -> None:
    for arguments in (("--max-batch", "2"), ("--max-context", "64")):
        assert doctor(rtx_artifact, "--device", "8.6:8GiB", *arguments).exit_code == 0
    result = doctor(rtx_artifact, "--max-batch", "4000")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: max_batch=4000 is not legal")


def test_json_has_every_finding(rtx_artifact: Path) -> None:
    result = doctor(rtx_artifact, "--device", "8.6:1GiB", "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 1
    assert data.keys() == {"artifact", "runs", "plan", "described_device", "findings", "plans"}
    assert (data["runs"], data["plan"], data["described_device"]) == (False, None, True)
    [plan] = data["plans"]
    assert plan.keys() == {"target", "plan", "precision", "runs", "findings"}
    for finding in [*data["findings"], *plan["findings"]]:
        assert finding.keys() == {"code", "status", "found", "needed", "action"}
        assert finding["code"] in MEANINGS
        assert finding["status"] in ("ok", "warning", "problem")
    [memory] = [each for each in plan["findings"] if each["code"] == "out_of_memory"]
    assert memory["status"] == "problem"


def test_a_device_of_no_use_to_a_cpu_artifact(tiny_artifact: Path) -> None:
    result = doctor(tiny_artifact, "--device", "8.6")
    assert result.exit_code == 0
    assert "no plan of it is for a GPU" in result.stdout


@pytest.mark.parametrize("device", ["RTX 3060", "8.6:1MiB", "8.6:99999GiB", ""])
def test_a_device_that_cannot_be_is_wrong_usage(tiny_artifact: Path, device: str) -> None:
    result = doctor(tiny_artifact, "--device", device)
    assert result.exit_code == 2
    assert "8.6:24GiB" in result.stderr or "256MiB to 4096GiB" in result.stderr


def test_no_artifact(tmp_path: Path) -> None:
    result = doctor(tmp_path / "nothing")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'nothing'}: no such folder")


def test_the_page_explains_every_code() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "doctor.md").read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    expected = [
        [f"`{code}`", meaning.title, meaning.asks, meaning.cure]
        for code, meaning in MEANINGS.items()
    ]
    assert rows == expected


def test_codes_of_errors_are_codes_of_the_doctor() -> None:
    assert set(DeviceCode.__args__) <= set(MEANINGS)  # type: ignore[attr-defined]
