"""``bench serving``: figures of what a client saw, and a real server measured."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginewright.cli.bench import serving
from enginewright.cli.bench.children import WORKERS, Sample
from enginewright.cli.main import main

pytest.importorskip("uvicorn")


def told(**changes: Any) -> dict[str, float]:
    phases = serving._phases(range(5, 50), 4, 10, 50, 100)
    lone = {"seconds": [0.003, 0.004, 0.009], "offline": {"seconds": [0.003]}}
    many = {
        "wall_s": 2.0,
        "first_s": [0.1, 0.1, 0.1, 0.5],
        "cpu_s": 1.1,
        "step_cpu_s": 1.0,
        "client_cpu_s": 0.2,
        "offline": {"wall_s": 1.0, "cpu_s": 1.02, "step_cpu_s": 1.0},
    }
    meet = {"alone_s": [0.01, 0.02, 0.03], "during_s": [0.02, 0.3], "prompt_s": 0.9} | changes
    said = {"phases": [lone, lone, many, many, meet]}
    found = serving.figures(phases, [Sample(said, 0.0, 1.0, None, None, 0.0)], exact=True)
    return {f"{one.name} ({one.unit})": one.median for one in found}


def test_figures_of_what_a_client_saw() -> None:
    found = told()
    assert found["HTTP adds (ms)"] == pytest.approx(1)
    assert found["4 streams (tokens/s)"] == 20
    assert found["4 streams, offline (tokens/s)"] == 40
    assert found["4 streams, outside of steps (%)"] == pytest.approx(10)
    assert found["4 streams, offline, outside of steps (%)"] == pytest.approx(2)
    assert found["4 streams, client's CPU (us a token)"] == pytest.approx(5000)
    assert found["a stream, between tokens (ms)"] == pytest.approx(20)
    assert found["longest pause while 100 tokens arrive (ms)"] == pytest.approx(300)
    assert found["... and their first token (ms)"] == pytest.approx(900)


def test_a_stream_that_got_nothing_meanwhile_paused_all_the_time() -> None:
    assert told(during_s=[])["longest pause while 100 tokens arrive (ms)"] == pytest.approx(900)


def test_a_real_server(tiny_artifact: Path) -> None:
    options = ["--runs", "1", "--threads", "1", "--streams", "4", "--tokens", "8", "--json"]
    result = CliRunner().invoke(main, ["bench", "serving", str(tiny_artifact), *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["servers"]["enginewright"]
    assert found["lone request"]["median"] > 0
    assert found["4 streams, outside of steps"]["median"] > 0
    assert found["longest pause while 598 tokens arrive"]["median"] > 0
    assert found["... and their first token"]["median"] > 0


def test_a_stream_that_the_server_refuses_ends_the_client() -> None:
    """It would wait for an end that never comes."""
    client = [sys.executable, str(WORKERS / "http_client.py")]
    refusal = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with subprocess.Popen(
            [*client, port], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"kind": "streams", "bodies": [{}]}) + "\n")
            process.stdin.flush()
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(refusal)
                _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the server answers" in errors
    assert "503 Service Unavailable" in errors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt-tokens", "600"], "601 tokens are asked for: this engine takes 600"),
        (["--llama-server", __file__], "--llama-server and --gguf go together"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tiny_artifact: Path, options: list[str], said: str
) -> None:
    result = CliRunner().invoke(main, ["bench", "serving", str(tiny_artifact), *options])
    assert result.exit_code == 2
    assert said in result.output
