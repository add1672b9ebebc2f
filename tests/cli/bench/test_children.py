"""Child processes: what they say, what they need, and how their failures are told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from enginewright.cli.bench.children import OUR_WORKER, sample
from enginewright.cli.bench.environment import own_requirement
from enginewright.cli.bench.workload import make_workload
from enginewright.cli.main import main
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import EnginewrightError


def script(tmp_path: Path, body: str) -> list[str | Path]:
    path = tmp_path / "worker.py"
    path.write_text(f"import json, sys\n{body}\n", "utf-8")
    return [sys.executable, path]


def test_a_worker_gets_its_workload_and_answers_on_its_last_line(tmp_path: Path) -> None:
    worker = script(
        tmp_path, "print('a library says hello')\nprint(json.dumps({'got': json.load(sys.stdin)}))"
    )
    taken = sample(worker, {"ids": list(range(50_000))})

    assert taken.said == {"got": {"ids": list(range(50_000))}}
    assert taken.wall > 0
    assert 0 <= taken.disturbance <= 1
    if sys.platform == "linux":
        assert taken.peak_rss is not None
        assert taken.peak_anonymous is not None
        assert taken.peak_anonymous <= taken.peak_rss


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("sys.exit('out of luck')", "exit status 1, no measurement:\nout of luck"),
        ("pass", "it wrote nothing"),
        ("print('not JSON')", "exit status 0"),
    ],
)
def test_a_worker_that_fails_is_told_with_its_last_words(
    tmp_path: Path, body: str, told: str
) -> None:
    with pytest.raises(EnginewrightError, match=told):
        sample(script(tmp_path, body), {"large": "x" * 1_000_000})


def test_a_users_mistake_is_told_without_the_workers_traceback(tmp_path: Path) -> None:
    body = (
        "from enginewright.runtime import SamplingParamsError, TargetError\n"
        "try:\n    raise SamplingParamsError('the first')\n"
        "except SamplingParamsError:\n    raise TargetError('no plan runs: x;\\n  y')"
    )
    with pytest.raises(EnginewrightError) as caught:
        sample(script(tmp_path, body), {})
    assert str(caught.value) == "no plan runs: x;\n  y"


def test_our_worker_measures_an_artifact(tiny_artifact: Path) -> None:
    opened = Artifact.open(tiny_artifact)
    work = make_workload(opened.manifest, opened.engine(), 1, 16, 8)
    said = sample(OUR_WORKER, work.at(str(tiny_artifact))).said

    assert said["load_s"] > 0
    assert said["first_token_s"] > 0
    assert (said["batch_s"] is None) == (len(work.decode_prompts) == 1)


def test_bench_without_a_name_is_speed(tiny_artifact: Path) -> None:
    small = ["--runs", "1", "--prompt-tokens", "16", "--decode-tokens", "8", "--threads", "1"]
    result = CliRunner().invoke(main, ["bench", str(tiny_artifact), *small, "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)

    assert {"load", "first token of 16", "prefill 16"} <= data["figures"].keys()
    assert data["threads"] == 1
    table = CliRunner().invoke(main, ["bench", "speed", str(tiny_artifact), *small])
    assert "first token of 16 (ms)" in table.stdout


def test_startup_measures_fresh_processes(tiny_artifact: Path) -> None:
    result = CliRunner().invoke(
        main, ["bench", "startup", str(tiny_artifact), "--runs", "1", "--here", "--json"]
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["figures"]

    assert figures["import enginewright.runtime, CPU"]["median"] > 0
    assert figures["to first token, CPU"]["median"] > 0
    assert figures["to first token, wall"]["median"] > 0
    assert "environment" not in figures, "nothing was installed"


def test_an_installation_from_a_folder_is_installed_from_there_again() -> None:
    requirement, key = own_requirement("cpu")

    assert requirement.partition("[")[2].startswith("cpu]")
    assert key == own_requirement("cpu")[1]
