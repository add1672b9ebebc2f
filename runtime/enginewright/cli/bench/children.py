"""Samples are taken in child processes, one at a time: a workload goes in, one JSON line comes out.

A worker is a script that reads a workload (JSON) from stdin; each says in its first lines what it
takes and what it prints. workers/measure.py runs any of several engines.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginewright.cli.bench.machine import Busy, disturbance, memory
from enginewright.runtime.errors import EnginewrightError

WORKERS = Path(__file__).parent / "workers"
MEASURE = WORKERS / "measure.py"
OUR_WORKER = (sys.executable, MEASURE, "enginewright_engine")
"""The command that measures our own runtime, in this environment."""
_POLL_SECONDS = 0.02
_OURS = re.compile(r"^enginewright\.runtime\.errors\.\w+: ", re.MULTILINE)
"""How a traceback of Python's names a mistake of the user; what it says stands after that."""


@dataclass(frozen=True)
class Sample:
    """What one child process said, and what was seen of it from outside."""

    said: Mapping[str, Any]
    started: float
    """``time.monotonic()`` just before the process was started."""
    wall: float
    peak_rss: int | None
    peak_anonymous: int | None
    disturbance: float
    """Share of the machine that other processes took meanwhile."""


def sample(
    command: Sequence[str | Path], workload: Mapping[str, Any], *, poll: bool = True
) -> Sample:
    """Run one worker to its end.

    Where it fails, raises EnginewrightError: with the worker's own, else with what it wrote last.
    """
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as answer:
        busy, own, started = Busy.now(), _own_seconds(), time.monotonic()
        with subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=errors,
            text=True,
            env=_environment(),
        ) as process:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                json.dump(workload, pipe)
            peak, anonymous = _watch(process) if poll else (None, None)
            status = process.wait()
        wall = time.monotonic() - started
        used = _own_seconds() - own
        said = _answer(command, status, answer, errors)
        taken = disturbance(busy, Busy.now(), used, wall)
        return Sample(said, started, wall, peak, anonymous, taken)


def _environment() -> dict[str, str]:
    """The user's environment, without what would change how a worker runs."""
    dropped = {"PYTHONPATH", "PYTHONSTARTUP", "OMP_NUM_THREADS"}
    return {name: value for name, value in os.environ.items() if name not in dropped}


def _own_seconds() -> float:
    """Processor seconds of this process and of the children that it waited for."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, both))


def _watch(process: subprocess.Popen[str]) -> tuple[int | None, int | None]:
    """Peak resident and peak anonymous bytes, polled until the process ends."""
    peak = anonymous = 0
    while process.poll() is None:
        seen = memory(process.pid)
        peak = max(peak, seen.get("peak", 0))
        anonymous = max(anonymous, seen.get("anonymous", 0))
        time.sleep(_POLL_SECONDS)
    return peak or None, anonymous or None


def _answer(command: Sequence[str | Path], status: int, answer: Any, errors: Any) -> Any:
    answer.seek(0)
    errors.seek(0)
    lines = answer.read().splitlines()
    if status == 0 and lines:
        with contextlib.suppress(ValueError):
            return json.loads(lines[-1])
    wrote = errors.read()
    _, *mistakes = _OURS.split(wrote)
    if mistakes:
        raise EnginewrightError(mistakes[-1].strip())
    tail = "\n".join(wrote.splitlines()[-15:]) or "it wrote nothing"
    raise EnginewrightError(
        f"{' '.join(map(str, command))}: exit status {status}, no measurement:\n{tail}"
    )
