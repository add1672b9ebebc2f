"""Models of the hub: fetched at a commit where it is reachable, a clear error where it is not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source import open_source
from enginewright.runtime.errors import SourceError

COMMIT = "0123456789" * 4
SPEC = SourceSpec(hub="someone/tiny", revision=COMMIT)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache of one's own, and a hub at a loopback port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


def test_a_hub_that_cannot_be_reached(empty_cache: Path) -> None:
    with pytest.raises(SourceError, match="cannot be reached") as caught:
        open_source(SPEC)
    assert "someone/tiny" in str(caught.value)
    assert "source.path" in str(caught.value)


@pytest.mark.parametrize("status", [404, 401, 500])
def test_a_hub_that_refuses(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with answering(status) as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        with pytest.raises(SourceError, match=rf"someone/tiny@{COMMIT}.*{status}"):
            open_source(SPEC)


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server on a loopback port that answers every request with a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_the_cache_holds_needs_no_hub(
    empty_cache: Path, make_checkpoint: Callable[..., Path]
) -> None:
    make_checkpoint(empty_cache / "models--someone--tiny/snapshots" / COMMIT, {})
    source = open_source(SPEC)
    assert (source.kind, source.reference, source.revision) == ("hub", "someone/tiny", COMMIT)
    assert source.weight("lm_head.weight").shape == (320, 64)
