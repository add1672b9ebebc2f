"""What registries do that the one of the other tests does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from enginewright.runtime.errors import RegistryError
from enginewright.runtime.registry import client
from enginewright.runtime.registry.client import Repository
from enginewright.runtime.registry.reference import Reference

CONTENT = bytes(range(256)) * 100
DIGEST = "sha256:" + "0" * 64
Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.001)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Repository]]:
    """``serve(answer)``: a repository whose GET is answered by the function."""
    servers = []

    def start(answer: Answer) -> Repository:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *arguments: object) -> None:
                """Quietly."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return Repository(Reference(f"127.0.0.1:{server.server_port}", "a"))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def test_a_busy_registry_is_asked_again(serve: Callable[[Answer], Repository]) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        send(handler, 503 if len(asked) < 4 else 200, b"{}")

    assert serve(answer).manifest() == b"{}"
    assert len(asked) == 4


def test_a_registry_that_is_always_busy(serve: Callable[[Answer], Repository]) -> None:
    with pytest.raises(RegistryError, match=r"failed 6 times \(status 503"):
        serve(lambda handler: send(handler, 503)).manifest()


def test_a_registry_that_sends_all_where_a_part_was_asked_for(
    serve: Callable[[Answer], Repository], tmp_path: Path
) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"from an earlier try")
    serve(lambda handler: send(handler, 200, CONTENT)).download(DIGEST, len(CONTENT), part)
    assert part.read_bytes() == CONTENT


def test_a_part_is_asked_for_and_appended(
    serve: Callable[[Answer], Repository], tmp_path: Path
) -> None:
    part, asked = tmp_path / "part", []
    part.write_bytes(CONTENT[:1000])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Range"])
        send(handler, 206, CONTENT[1000:])

    serve(answer).download(DIGEST, len(CONTENT), part)
    assert asked == ["bytes=1000-"]
    assert part.read_bytes() == CONTENT


def test_a_registry_that_sends_more_than_it_said(
    serve: Callable[[Answer], Repository], tmp_path: Path
) -> None:
    repository = serve(lambda handler: send(handler, 200, CONTENT))
    with pytest.raises(RegistryError, match="more than the 100 bytes"):
        repository.download(DIGEST, 100, tmp_path / "part")


def test_a_registry_that_leads_nowhere(serve: Callable[[Answer], Repository]) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        send(handler, 302, Location=handler.path)

    with pytest.raises(RegistryError, match="redirects"):
        serve(answer).manifest()
    assert len(asked) < 40, "it is not tried again"


@pytest.mark.parametrize(("status", "said"), [(403, "may not do this"), (404, "was it pushed?")])
def test_a_refusal_says_what_may_be_wrong(
    serve: Callable[[Answer], Repository], status: int, said: str
) -> None:
    body = b'{"errors": [{"code": "X", "message": "the reason"}]}'
    with pytest.raises(RegistryError, match="the reason") as raised:
        serve(lambda handler: send(handler, status, body)).manifest()
    assert said in str(raised.value)
    assert raised.value.status == status
