"""Runs the compiling process and turns whatever becomes of it into an outcome or one error."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from enginewright.builder.child_process import Lifeline, run_child
from enginewright.builder.targets.tensorrt.job import Job, Outcome
from enginewright.builder.targets.tensorrt.library import Library
from enginewright.runtime.errors import BuildError

_WORKER = "enginewright.builder.targets.tensorrt.worker"
_LAST_LINES = 15


def compile_job(job: Job, library: Library, progress: Callable[[str], None]) -> Outcome:
    """Build the job's engine; raises BuildError with the library's own lines where it fails."""
    with TemporaryDirectory(prefix="enginewright-tensorrt-") as folder:
        request, answer, said = (Path(folder, name) for name in ("job", "outcome", "stderr"))
        job.write(request)
        command = [sys.executable, "-m", _WORKER, str(request), str(answer)]
        status = _run(command, library, said, progress)
        if status or not answer.exists():
            raise BuildError(_death(library, status, said.read_text("utf-8", "replace")))
        outcome = Outcome.read(answer)
    if outcome.errors:
        listed = "\n".join(f"  {line}" for line in outcome.errors)
        raise BuildError(f"{library.name} {library.version} did not build the engine:\n{listed}")
    return outcome


def _run(command: list[str], library: Library, said: Path, progress: Callable[[str], None]) -> int:
    def tell(line: str) -> None:
        progress(f"{library.name}: {line}")

    with library.environment() as environment, Lifeline() as lifeline:
        return run_child(command, environment, said, tell, lifeline)


def _death(library: Library, status: int, said: str) -> str:
    how = f"ended with status {status}" if status >= 0 else f"was ended by {_signal(-status)}"
    lines = said.strip().splitlines()[-_LAST_LINES:]
    last = "\n".join(f"  {line}" for line in lines) or "  (it said nothing)"
    hint = "; was there enough memory?" if status == -signal.SIGKILL else ""
    return (
        f"the compiling process of {library.name} {library.version} {how}{hint}; its last lines:\n"
        f"{last}"
    )


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
