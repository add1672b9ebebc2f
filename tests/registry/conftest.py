"""A real registry on the loopback, and a proxy before it that cuts connections."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("requests", reason="registries need the extra [oci]")

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
{more}
"""
StartRegistry = Callable[..., str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(host: str, process: subprocess.Popen[bytes]) -> None:
    name, _, port = host.partition(":")
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection((name, int(port)), 1):
            return
        assert process.poll() is None, "the registry ended"
        time.sleep(0.05)
    raise AssertionError("the registry does not answer")


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[StartRegistry]:
    """``start_registry(more) -> host:port``; ``more``: lines for its configuration."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("there is no docker-registry here (make system-deps)")
    running = []

    def start(more: str = "") -> str:
        port = free_port()
        config = tmp_path / f"registry-{port}.yml"
        config.write_text(_CONFIG.format(root=tmp_path / f"data-{port}", port=port, more=more))
        environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
        running.append(
            subprocess.Popen(
                [program, "serve", str(config)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        )
        host = f"127.0.0.1:{port}"
        wait_for(host, running[-1])
        return host

    yield start
    for process in running:
        process.terminate()
        process.wait()


@pytest.fixture
def registry(start_registry: StartRegistry) -> str:
    """Its host and port."""
    return start_registry()


class CuttingProxy:
    """Passes bytes to a host; cuts each of the first ``cuts`` connections after ``limit`` bytes
    in the ``direction`` that is counted: "down" to the client, "up" to the host. After the
    ``last`` one nothing is accepted any more."""

    def __init__(self, host: str, cuts: int, limit: int, direction: str, last: bool) -> None:
        name, _, port = host.partition(":")
        self._upstream = (name, int(port))
        self.cuts, self._limit, self._direction, self._last = cuts, limit, direction, last
        self.made = 0
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            host = socket.create_connection(self._upstream)
            for source, sink, way in ((client, host, "up"), (host, client, "down")):
                arguments = (source, sink, way == self._direction)
                threading.Thread(target=self._pass, args=arguments, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 14):
                passed += len(piece)
                if counted and passed > self._limit and self._may_cut():
                    break
                sink.sendall(piece)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _may_cut(self) -> bool:
        with self._lock:
            if self.made >= self.cuts:
                return False
            self.made += 1
        if self._last and self.made == self.cuts:
            self.close()
        return True


@pytest.fixture
def cutting(registry: str) -> Iterator[Callable[..., CuttingProxy]]:
    """``cutting(cuts, limit, direction, last)``: a proxy before the registry."""
    made = []

    def make(cuts: int, limit: int, direction: str = "down", *, last: bool = False) -> CuttingProxy:
        made.append(CuttingProxy(registry, cuts, limit, direction, last))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()
