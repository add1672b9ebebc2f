"""The engine's thread by itself: closed from where a finalizer may run."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from enginewright.runtime.engine_thread import EngineThread
from enginewright.runtime.scheduling.core import EngineCore


def test_it_may_be_closed_on_its_own_thread(
    null_engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The garbage collector runs the finalizer of an AsyncLLM on whatever thread it finds."""
    core = EngineCore(null_engine())
    engine = EngineThread(core)
    closed_on: list[threading.Thread] = []

    def collect() -> None:
        engine.close()
        closed_on.append(threading.current_thread())

    monkeypatch.setattr(core, "reset_prefix_cache", collect)
    with caplog.at_level(logging.ERROR):
        engine.reset_prefix_cache()
        engine._thread.join(60)
    assert closed_on == [engine._thread]
    assert not engine._thread.is_alive()
    assert not engine.failed
    assert not caplog.records
