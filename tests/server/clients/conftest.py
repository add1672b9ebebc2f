"""Clients that live in an environment of their own, and a server that is a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(__file__).parent / "scripts"
_START = 60.0

RunClient = Callable[..., str]


@pytest.fixture(scope="session")
def clients_python() -> Path:
    """The Python with the extra ``clients``: ENGINEWRIGHT_CLIENTS_PYTHON, or make's."""
    given = os.environ.get("ENGINEWRIGHT_CLIENTS_PYTHON")
    python = Path(given) if given else ROOT / ".venv-clients" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"there is no {python}: make client-check installs the clients")
    return python


@pytest.fixture
def run_client(clients_python: Path, tmp_path: Path) -> RunClient:
    """``run_client("with_x.py", *args) -> its output``: a script with the clients' Python."""

    def run(script: str, *args: str) -> str:
        environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        done = subprocess.run(
            [str(clients_python), str(SCRIPTS / script), *args],
            env={**environment, "HOME": str(tmp_path), "NO_PROXY": "*"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    return run


@dataclass(frozen=True)
class ServerProcess:
    """``enginewright serve``, listening."""

    url: str
    pid: int

    def resident(self) -> int:
        """Bytes of anonymous memory that it holds."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024


@pytest.fixture
def server_process(tiny_artifact: Path) -> Iterator[ServerProcess]:
    """A server over the tiny model."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    flags = ["--port", str(port), "--threads", "1", "--no-access-log", "--log-level", "warning"]
    process = subprocess.Popen(
        [sys.executable, "-m", "enginewright.cli", "serve", f"tiny={tiny_artifact}", *flags],
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process)
        yield ServerProcess(url, process.pid)
    finally:
        process.terminate()
        assert process.wait(_START) == 0


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START
    while True:
        try:
            with urllib.request.urlopen(f"{url}/ready"):
                return
        except urllib.error.URLError:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.05)
