"""What ``make gpu-check`` does around the device: rows, verdicts, a decode step on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}


@pytest.fixture
def decode_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr("enginewright.builder.targets.operators.compile_library", lambda: None)
    return pytest.importorskip("scripts.gpu_check.decode_step")


@pytest.mark.parametrize(("bandwidth", "verdict"), [(1e3, "ok"), (1e15, "MISSED")])
def test_a_decode_step_beside_its_floor(
    decode_step: Any, tmp_path: Path, bandwidth: float, verdict: str
) -> None:
    """Built, run in a process of its own and timed, as for a GPU; at 1 kB/s no step is slow."""
    target = decode_step.Target("cpu", (), {"precision": "fp32"})
    (row,) = decode_step.rows(tmp_path, [target], bandwidth, SHAPE)
    assert row.verdict == verdict, row
    weights = 4 * (300 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128))
    cache = 64 * 2 * 2 * 2 * 16 * 4
    assert weights + cache < row.figures["bytes"] < 1.1 * (weights + cache)
    expected = row.figures["bytes"] / bandwidth / (row.figures["microseconds"] / 1e6)
    assert row.figures["share_of_floor"] == pytest.approx(expected)
    assert not (tmp_path / "cpu").exists()


def test_what_fails_and_what_is_missing_are_rows(decode_step: Any, tmp_path: Path) -> None:
    fails = decode_step.Target("cpu", (), {"precision": "int3"})
    absent = decode_step.Target("cuda", ("no_such_package",), {"precision": "fp16"})
    failed, skipped = decode_step.rows(tmp_path, [fails, absent], 1e9, SHAPE)
    assert (failed.verdict, skipped.verdict) == ("FAILED", "skipped")
    assert "int3" in failed.value
    assert skipped.value == "no_such_package not installed"


def test_rows_are_kept_as_they_come(decode_step: Any, tmp_path: Path) -> None:
    from scripts.gpu_check import report

    rows = [
        report.Row("decode", "a", "1.0", ">= 0.8", "ok", {"share": 1.0}),
        report.skipped("tests", "b", "c not installed"),
    ]
    report.write(tmp_path / "found.json", {"gpu": "none"}, rows)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"][0]["figures"] == {"share": 1.0}
    assert report.table(rows).splitlines()[-1] == "| tests | b | c not installed |  | skipped |"


def test_without_a_gpu_nothing_is_run_and_the_exit_code_tells(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.gpu_check", "--output", str(tmp_path / "found.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "gpu-check: not run, " in done.stderr
    assert not (tmp_path / "found.json").exists()
