"""``enginewright batch`` as a process: the answers of the offline API, resumed after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import LLM, SamplingParams


def write_input(path: Path, count: int, max_tokens: int = 6) -> None:
    lines = []
    for number in range(count):
        body: dict[str, Any] = {"model": "tiny", "max_tokens": max_tokens, "seed": number}
        body["messages"] = [{"role": "user", "content": f"Say {number}."}]
        asked = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions"}
        lines.append(json.dumps({**asked, "body": body}))
    path.write_text("\n".join(lines) + "\n")


def command(source: Path, output: Path, artifact: Path, *more: str) -> list[str]:
    files = [str(source), str(output), "--model", str(artifact)]
    return [sys.executable, "-m", "enginewright.cli", "batch", *files, "--threads", "1", *more]


def run(*args: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=300, check=False)


def answers(path: Path) -> dict[str, Any]:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines), "a line is there twice"
    return found


def check(found: dict[str, Any], count: int, offline: LLM, max_tokens: int = 6) -> None:
    """Every line has the answer that the offline API gives on its seed."""
    assert found.keys() == {f"r{number}" for number in range(count)}
    for number in range(count):
        messages = [{"role": "user", "content": f"Say {number}."}]
        params = SamplingParams(max_tokens=max_tokens, seed=number)
        (expected,) = offline.chat(messages, params, use_tqdm=False)
        response = found[f"r{number}"]["response"]
        assert response["status_code"] == 200
        (choice,) = response["body"]["choices"]
        assert choice["message"]["content"] == expected.outputs[0].text


def test_every_line_is_answered_and_mistakes_are_their_own(
    tiny_artifact: Path, tmp_path: Path, offline: LLM
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_input(source, 5)
    wrong = {"custom_id": "bad", "method": "POST", "url": "/v1/completions", "body": {"prompt": ""}}
    other = {**wrong, "custom_id": "other", "body": {"prompt": "x", "model": "none"}}
    with source.open("a") as file:
        for each in (wrong, other, {**wrong, "custom_id": "half \ud800"}):
            file.write(json.dumps(each) + "\n")
        file.write("rubbish\n")
    done = run(source, output, tiny_artifact)
    assert done.returncode == 0, done.stderr
    assert "9 of 9 lines, 4 of them errors" in done.stderr

    lines = [json.loads(text) for text in output.read_text().splitlines()]
    by_id = {line["id"]: line for line in lines}
    assert by_id["batch_req_6"]["response"]["status_code"] == 400
    assert by_id["batch_req_7"]["response"]["status_code"] == 404
    assert by_id["batch_req_8"]["custom_id"] is None
    assert "half of a surrogate pair" in by_id["batch_req_8"]["error"]["message"]
    assert by_id["batch_req_9"]["error"]["code"] == 400
    good = {line["custom_id"]: line for line in lines if line["error"] is None}
    check(good, 5, offline)

    again = run(source, output, tiny_artifact)
    assert "9 of 9 lines are answered already" in again.stderr
    assert len(output.read_text().splitlines()) == 9


@pytest.mark.slow
def test_a_killed_batch_goes_on_where_it_was(
    tiny_artifact: Path, tmp_path: Path, offline: LLM
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    count, tokens = 400, 60
    write_input(source, count, tokens)
    output.touch()
    kills = 0
    for target in (1, 120, 240):
        process = subprocess.Popen(command(source, output, tiny_artifact), stderr=subprocess.PIPE)
        while output.read_bytes().count(b"\n") < target and process.poll() is None:
            time.sleep(0.005)
        kills += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert kills == 3, "the batch ended before it was killed"
    assert 240 <= output.read_bytes().count(b"\n") < count
    assert run(source, output, tiny_artifact).returncode == 0
    check(answers(output), count, offline, tokens)


@pytest.mark.slow
def test_over_ray_data(tiny_artifact: Path, tmp_path: Path, offline: LLM) -> None:
    pytest.importorskip("ray.data", reason="the extra ray is not installed")
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_input(source, 150)
    done = run(source, output, tiny_artifact, "--ray", "--num-cpus", "0.5", "--replicas", "2")
    assert done.returncode == 0, done.stderr
    check(answers(output), 150, offline)
