"""A thread that alone steps a core: jobs come from any thread, and listeners hear how they go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.scheduling.core import EngineCore
from enginewright.runtime.scheduling.job import Job
from enginewright.runtime.stats import EngineStats

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Hears of one job, on the engine's thread: it must not wait for anything."""

    def moved(self, job: Job) -> None:
        """The job got tokens or ended; it may be read until this returns."""

    def failed(self, error: EnginewrightError) -> None:
        """The job was not taken, or ended with the engine; nothing more is heard of it."""


class EngineThread:
    """Steps the core while there is work, sleeps while there is none, and closes it at the end.

    What the engine raises ends the thread: every job fails, and so does every later ``submit``.
    """

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._changed = threading.Condition()
        self._commands: list[Callable[[], object]] = []
        self._listeners: dict[Job, Listener] = {}
        self._closing = False
        self._failure: BaseException | None = None
        # A daemon, so that a program that forgets to close it can still end.
        self._thread = threading.Thread(target=self._run, name="enginewright-engine", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the engine raised."""
        return self._failure is not None

    @property
    def running(self) -> bool:
        """Whether jobs are taken."""
        return not self._closing and not self.failed

    def submit(self, job: Job, listener: Listener) -> None:
        """Queue a job; raises EnginewrightError when the engine failed or was closed."""
        with self._changed:
            self.check()
            self._listeners[job] = listener
            self._command(lambda: self._add(job))

    def abort(self, job: Job) -> None:
        """Give up a job before the next step; nothing happens to one that ended."""
        with self._changed:
            self._command(lambda: self._give_up(job))

    def reset_prefix_cache(self) -> None:
        """Before the next step, forget what ended jobs have computed."""
        with self._changed:
            self.check()
            self._command(self._core.reset_prefix_cache)

    def tell_stats(self, listener: Callable[[EngineStats], object]) -> None:
        """Call it with how the engine stands, on its thread, between two steps."""
        with self._changed:
            self.check()
            self._command(lambda: listener(self._core.stats()))

    def check(self) -> None:
        """Raise EnginewrightError when the engine failed or was closed."""
        if not self.running:
            raise self._gone()

    def close(self) -> None:
        """Finish the step that runs, end all jobs, and free the engine. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        # A finalizer calls it on any thread, the engine's own too, which cannot wait for itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _command(self, command: Callable[[], object]) -> None:
        """Have it called on the engine's thread, between two steps."""
        self._commands.append(command)
        self._changed.notify()

    def _run(self) -> None:
        try:
            while not self._closing:
                for command in self._next_commands():
                    command()
                for job in self._core.step():
                    self._tell(job)
        except BaseException as error:  # whatever it is, those who wait must hear of it
            logger.exception("the engine failed, and with it every request")
            self._failure = error
        with self._changed:
            self._closing = True
            left, self._listeners = list(self._listeners.values()), {}
        for listener in left:
            listener.failed(self._gone())
        self._core.close()

    def _next_commands(self) -> list[Callable[[], object]]:
        """Wait until there is something to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._commands or self._closing or self._core.busy,
            )
            commands, self._commands = self._commands, []
        return commands

    def _add(self, job: Job) -> None:
        try:
            self._core.add(job)
        except EnginewrightError as error:
            with self._changed:
                listener = self._listeners.pop(job)
            listener.failed(error)

    def _give_up(self, job: Job) -> None:
        if job in self._listeners:
            self._core.abort([job])
            self._tell(job)

    def _tell(self, job: Job) -> None:
        with self._changed:
            listener = self._listeners.pop(job) if job.finished else self._listeners[job]
        listener.moved(job)

    def _gone(self) -> EnginewrightError:
        """A new one each time: many tasks raise it, each with a traceback of its own."""
        if self._failure is None:
            return EnginewrightError("the engine was closed; open the artifact again")
        told = f"{type(self._failure).__name__}: {self._failure}"
        error = EnginewrightError(f"the engine failed ({told}); open the artifact again")
        error.__cause__ = self._failure
        return error
