"""A process of its own for a part of a build, whose lines are told as they come.

Its stdin is a pipe that nobody writes to: it ends when the parent does, however that is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import NoReturn

_GRACE = 5.0
"""Seconds that a child has to remove what it was making."""


class Lifeline:
    """A pipe that children hold on to; when it is cut, or this process ends, they end."""

    def __init__(self) -> None:
        self.end, self._held = os.pipe()

    def cut(self) -> None:
        """End the children; one that starts later ends at once."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()
        os.close(self.end)


def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    said: Path,
    tell: Callable[[str], None],
    lifeline: Lifeline,
) -> int:
    """Run it to its end and return its status; what it writes to stderr goes to the file ``said``.

    An interrupted build leaves no process behind, if the child calls ``end_with_parent``.
    """
    with (
        said.open("wb") as errors,
        subprocess.Popen(
            command,
            stdin=lifeline.end,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tell(line.rstrip())
        except BaseException:
            process.kill()
            raise
    return process.returncode


def end_with_parent(scratch: Path) -> None:
    """In a child of ``run_child``: end when the parent has, and remove ``scratch`` for it."""
    signal.signal(signal.SIGTERM, _leave)
    Thread(target=_watch, args=(scratch,), daemon=True).start()


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds what is done inside, as Ctrl-C does."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _watch(scratch: Path) -> None:
    while os.read(0, 1):
        pass
    shutil.rmtree(scratch, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)  # it is in a long call of a library
