"""This machine: its processor, its memory, and how much of it others used during a sample."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginewright.runtime.cores import available_cores
from enginewright.runtime.processor import processor_name

_PROC = Path("/proc")


def describe() -> dict[str, Any]:
    """What a reader must know of the machine to place the figures."""
    return {"processor": processor_name(), "cores": cores(), "system": platform.platform()}


def cores() -> int:
    """The threads that an engine takes where no number is given."""
    return available_cores()


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process: ``peak`` resident so far, ``anonymous`` now; empty where unknown."""
    wanted = {"VmHWM": "peak", "RssAnon": "anonymous"}
    try:
        lines = (_PROC / str(pid) / "status").read_text("ascii", "replace").splitlines()
    except OSError:
        return {}
    split = (line.partition(":") for line in lines)
    return {wanted[key]: int(rest.split()[0]) * 1024 for key, _, rest in split if key in wanted}


@dataclass(frozen=True)
class Busy:
    """Processor seconds of the whole machine since it started; ``steal`` is the host's."""

    used: float
    steal: float

    @staticmethod
    def now() -> Busy | None:
        """None where the system does not tell."""
        try:
            fields = (_PROC / "stat").read_text("ascii").split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        user, nice, system, _idle, _wait, irq, softirq, steal = map(float, fields)
        tick = os.sysconf("SC_CLK_TCK")
        return Busy((user + nice + system + irq + softirq) / tick, steal / tick)


def disturbance(before: Busy | None, after: Busy | None, own: float, wall: float) -> float:
    """Share of the machine, 0 to 1, that others took in ``wall`` seconds; 0 where unknown.

    ``own`` are the processor seconds that the measurement itself used.
    """
    if before is None or after is None or wall <= 0:
        return 0.0
    others = after.used - before.used - own + after.steal - before.steal
    return min(max(others / (wall * (os.cpu_count() or 1)), 0.0), 1.0)
