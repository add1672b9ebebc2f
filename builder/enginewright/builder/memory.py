"""How long a stage took and how much memory it had at its peak."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_INTERVAL = 0.01


class StageMeter:
    """Context that watches this process while a stage runs; bytes, seconds.

    ``anonymous_growth``: the peak of anonymous memory above where the stage began, mapped files
    not counted; ``mapped_peak``: that of mapped files. Read from /proc, so 0 on systems without it.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.anonymous_before = 0
        self.anonymous_peak = 0
        self.mapped_peak = 0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def anonymous_growth(self) -> int:
        return max(self.anonymous_peak - self.anonymous_before, 0)

    def __enter__(self) -> Self:
        _give_back_freed()
        self.anonymous_before = self.anonymous_peak = anonymous_bytes()
        self.mapped_peak = _resident("RssFile")
        self._start = time.perf_counter()
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._watcher.join()
        self.seconds = time.perf_counter() - self._start
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        self.anonymous_peak = max(self.anonymous_peak, anonymous_bytes())
        self.mapped_peak = max(self.mapped_peak, _resident("RssFile"))


@contextlib.contextmanager
def passing_over_older_objects() -> Iterator[None]:
    """Collections inside look at what is made inside: torch alone leaves a million objects."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _give_back_freed() -> None:
    """What earlier stages freed but the allocator holds would hide what this one takes."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process."""
    return _resident("RssAnon")


def _resident(kind: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    match = re.search(rf"{kind}:\s+(\d+) kB", status.read_text())
    return int(match[1]) * 1024 if match else 0
