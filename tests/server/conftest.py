"""A real server on a loopback port, over a tiny model; clients of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from enginewright.runtime import LLM
from enginewright.server.app import build_app
from enginewright.server.life import Life, Server, uvicorn_config
from enginewright.server.options import ServeOptions
from enginewright.server.registry import ServedModels, open_models

KEY = "a key that nobody checks"


@dataclass
class Running:
    """A server that listens. ``models``: what it serves, to be looked into."""

    port: int
    server: Server
    models: ServedModels
    life: Life

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", **{"api_key": KEY, "max_retries": 0, **options}
        )

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", **{"api_key": KEY, "max_retries": 0, **options}
        )


Serve = Callable[..., "contextlib.AbstractContextManager[Running]"]


@contextlib.contextmanager
def running(models: list[dict[str, Any]], **settings: Any) -> Iterator[Running]:
    """Serve the models in a thread of this process."""
    options = ServeOptions.of(models, {"port": 0, "log_level": "warning", **settings})
    served, life = open_models(options.models), Life.of(options)
    server = Server(uvicorn_config(build_app(options, served, life), options), life)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(port, server, served, life)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def serve(tiny_artifact: Path) -> Serve:
    """``with serve(option=...) as running``: the tiny model, with these options."""

    def start(**settings: Any) -> contextlib.AbstractContextManager[Running]:
        return running([{"model": str(tiny_artifact), "threads": 1}], **settings)

    return start


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Running]:
    """One for all tests that need no options of their own."""
    settings = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    with serve(served_model_name=["tiny", "alias"], **settings) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found


@pytest.fixture(scope="session")
def offline(tiny_artifact: Path) -> Iterator[LLM]:
    """The same model without a server, to compare with."""
    with LLM(tiny_artifact, threads=1) as llm:
        yield llm
