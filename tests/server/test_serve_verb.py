"""``enginewright serve`` as a process: what it prints, how it ends, sockets, TLS, configuration."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginewright.cli.main import main
from enginewright.runtime.errors import EnginewrightError
from enginewright.server.life import uvicorn_config
from enginewright.server.options import ServeOptions

SERVE = (sys.executable, "-m", "enginewright.cli", "serve")
HALF = (
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n{"
)
LONG = {"prompt": "hi", "max_tokens": 500, "ignore_eos": True, "stream": True}


class Process:
    """The command, from its first line on stderr; the rest is read by a thread."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*SERVE, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []
        self._started = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._started.wait(120), self.text

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line)
                if "Uvicorn running on" in line:
                    self._started.set()
        self._started.set()

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def port(self) -> int:
        found = re.search(r"Uvicorn running on \S+:(\d+)", self.text)
        assert found is not None, self.text
        return int(found.group(1))

    def end(self, *signals: int) -> int:
        for each in signals or (signal.SIGTERM,):
            self.process.send_signal(each)
        code = self.process.wait(60)
        self._reader.join()
        return code


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[Process]:
    found = Process(*arguments, **environment)
    try:
        yield found
    finally:
        found.process.kill()
        found.end()


@contextmanager
def asked(port: int, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
    headers = {"content-type": "application/json"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        with connection.getresponse() as answer:
            yield answer


def test_a_signal_drains_and_the_exit_code_is_0(tiny_artifact: Path) -> None:
    with served(f"mine={tiny_artifact}", "--port", "0", "--threads", "1") as process:
        assert "model      mine" in process.text
        assert "600 tokens a request, 24 outputs at a time, 256 more may wait" in process.text
        with asked(process.port, LONG) as answer:
            first = answer.read(20)
            process.process.send_signal(signal.SIGTERM)
            rest = answer.read()  # what runs is finished
        assert process.process.wait(60) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", process.port), timeout=5)
    text = (first + rest).decode()
    assert text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"length"' in text
    assert "Traceback" not in process.text


def test_what_does_not_end_in_time_is_told_so(tiny_artifact: Path) -> None:
    limits = ("--drain-timeout", "1", "--max-num-seqs", "1")
    with (
        served(str(tiny_artifact), "--port", "0", "--threads", "1", *limits) as process,
        asked(process.port, {**LONG, "n": 100}) as answer,
    ):
        answer.read(20)
        assert process.end() == 0
        text = answer.read().decode()
    assert "the server ended before this request did" in text
    assert text.endswith("data: [DONE]\n\n")
    assert "Traceback" not in process.text


@pytest.mark.parametrize("seconds", [0, 0.5, 30])
def test_the_time_to_drain_is_not_rounded(seconds: float) -> None:
    options = ServeOptions.of([{"model": "a"}], {"drain_timeout": seconds})
    assert uvicorn_config(None, options).timeout_graceful_shutdown == seconds


def test_a_body_that_is_half_there_at_the_end_is_answered(tiny_artifact: Path) -> None:
    with (
        served(str(tiny_artifact), "--port", "0", "--drain-timeout", "1") as process,
        socket.create_connection(("127.0.0.1", process.port), timeout=60) as connection,
    ):
        connection.sendall(HALF)
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"  # it waits for the rest
        process.process.send_signal(signal.SIGTERM)
        with http.client.HTTPResponse(connection) as answer:
            answer.begin()
            error = json.loads(answer.read())["error"]
        assert process.process.wait(60) == 0
    assert (answer.status, error["code"], error["type"]) == (503, 503, "ServiceUnavailableError")
    assert answer.getheader("retry-after") == "1"
    assert "Traceback" not in process.text


def test_a_unix_socket(tiny_artifact: Path, tmp_path: Path) -> None:
    place = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:  # by a server that was killed
        left.bind(str(place))
    mask = os.umask(0o027)
    try:
        with served(str(tiny_artifact), "--uds", str(place), "--threads", "1") as process:
            assert stat.S_IMODE(place.stat().st_mode) == 0o750
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(place))
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
            refused = CliRunner().invoke(main, ["serve", "nowhere", "--uds", str(place)])
            assert refused.stderr == f"error: uds={place}: another server listens there\n"
            assert process.end(signal.SIGINT) == 0
    finally:
        os.umask(mask)
    assert not place.exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing/x.sock", "cannot listen there ([Errno 2] No such file or directory)"),
        ("plain", "there is something else than a socket"),
    ],
)
def test_a_unix_socket_that_cannot_be(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "plain").write_text("kept")
    result = CliRunner().invoke(main, ["serve", "nowhere", "--uds", str(tmp_path / name)])

    assert result.exit_code == 1
    assert result.stderr == f"error: uds={tmp_path / name}: {told}\n"
    assert (tmp_path / "plain").read_text() == "kept"


def test_tls(tiny_artifact: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(
            [*command, "-keyout", str(key), "-out", str(certificate)],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate")
    files = ("--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))
    with served(str(tiny_artifact), "--port", "0", "--threads", "1", *files) as process:
        context = ssl.create_default_context(cafile=str(certificate))
        place = "127.0.0.1", process.port
        with closing(http.client.HTTPSConnection(*place, context=context)) as connection:
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
        assert process.end() == 0


def test_a_config_file_and_flags_over_it(tiny_artifact: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"""
models:
  - {{model: {tiny_artifact}, served-model-name: [one, uno]}}
  - {{model: {tiny_artifact}, served_model_name: two, max-model-len: 64}}
port: 1
threads: 1
max-num-seqs: 2
api-key: secret
"""
    )
    with served("--config", str(config), "--port", "0", "--task", "generate") as process:
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=60)
        connection.request("GET", "/v1/models", headers={"authorization": "Bearer secret"})
        cards = json.loads(connection.getresponse().read())["data"]
        connection.close()
        assert process.end() == 0
    assert {card["id"]: card["max_model_len"] for card in cards} == {
        "one": 600,
        "uno": 600,
        "two": 64,
    }
    assert "--task is the older name of --runner" in process.text
    assert process.text.count("2 outputs at a time") == 2
    assert "secret" not in process.text


@pytest.mark.parametrize(
    ("arguments", "config", "code", "told"),
    [
        ([], "", 2, "there is no artifact to serve"),
        ([""], "", 2, "an artifact's name is empty"),
        (["a=b=", "--port", "x"], "", 2, "not a valid integer"),
        (["=b"], "", 2, "the form is NAME=ARTIFACT"),
        (["nowhere"], "", 1, "nowhere: no such folder"),
        (["nowhere", "--port", "70000"], "", 1, "port=70000 is not legal"),
        (["nowhere", "--ssl-keyfile", "a"], "", 1, "ssl_keyfile and ssl_certfile go together"),
        (
            ["nowhere", "--ssl-keyfile", "none.key", "--ssl-certfile", "none.pem"],
            "",
            1,
            "TLS cannot be set up from none.key, none.pem",
        ),
        (["nowhere", "--log-level", "loud"], "", 1, "legal are critical, error"),
        (["a", "b", "--served-model-name", "c"], "", 1, "give each its own as NAME=ARTIFACT"),
        ([], "{", 1, "is not YAML"),
        ([], "[1]", 1, "must be an object of names and values"),
        ([], "model: a\nmodels: []", 1, "model and models are both given"),
        ([], "model: a\nport: many", 1, "port='many' is not legal"),
        ([], "model: a\nprot: 1", 1, "did you mean port?"),
        ([], "model: a\naccess_log: 1", 1, "access_log=1 is not legal"),
        ([], "models: [{modle: a}]", 1, "each has model"),
        ([], "model: a\nfingerprint: mine", 1, "'engine' or 'none'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(
    tmp_path: Path, arguments: list[str], config: str, code: int, told: str
) -> None:
    if config:
        (tmp_path / "serve.yaml").write_text(config)
        arguments = [*arguments, "--config", str(tmp_path / "serve.yaml")]
    result = CliRunner().invoke(main, ["serve", *arguments])

    assert result.exit_code == code, result.output
    assert told in result.stderr


def test_parsers_that_do_not_exist_are_refused_at_the_start(tiny_artifact: Path) -> None:
    for name in ("tool-call-parser", "reasoning-parser"):
        result = CliRunner().invoke(main, ["serve", str(tiny_artifact), f"--{name}", "morse"])
        assert result.exit_code == 1
        assert "'morse' is not legal" in result.stderr


def test_a_port_that_is_taken(tiny_artifact: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*SERVE, str(tiny_artifact), "--port", port, "--threads", "1"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert f"error: the server cannot listen on 127.0.0.1:{port}" in done.stderr


def test_a_missing_extra_is_answered_by_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = CliRunner().invoke(main, ["serve", "somewhere"])

    assert result.exit_code == 1
    assert result.stderr == "error: needs fastapi: pip install 'enginewright[serve]'\n"


def test_two_models_cannot_have_one_name(tiny_artifact: Path) -> None:
    result = CliRunner().invoke(
        main, ["serve", f"a={tiny_artifact}", f"a={tiny_artifact}", "--threads", "1"]
    )

    assert result.exit_code == 1
    assert "two models are served as 'a'" in result.stderr


def test_options_are_frozen_and_need_a_model() -> None:
    with pytest.raises(EnginewrightError, match="there is no model to serve"):
        ServeOptions.of([], {})
    options = ServeOptions.of([{"model": "a"}], {"api_key": "k"})
    assert options.api_key == ("k",)
    with pytest.raises(AttributeError):
        options.port = 1  # type: ignore[misc]


def test_a_policy_holds_for_what_is_served(tiny_artifact: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("sources: [hub:nobody/*]\n")
    result = CliRunner().invoke(main, ["serve", str(tiny_artifact), "--policy", str(policy)])
    assert result.exit_code == 1
    assert "which the policy does not list; its sources are hub:nobody/*" in result.output

    config = tmp_path / "serve.yaml"
    config.write_text(f"model: {tiny_artifact}\npolicy: {{sources: [hub:nobody/*]}}\n")
    result = CliRunner().invoke(main, ["serve", "--config", str(config)])
    assert result.exit_code == 1
    assert "which the policy does not list" in result.output
