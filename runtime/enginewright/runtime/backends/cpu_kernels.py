"""Which kernels of our operators' library run: those a session is held to, and what it says.

The library chooses by the processor at hand, for each session: no better kernels than those of the
instruction set that ENGINEWRIGHT_CPU_KERNELS names, else of the one that the session is held to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ENTRY = "enginewright.cpu_kernels"
"""Of a session's configuration; plugins/cpu/register.cpp reads it."""


@dataclass(frozen=True)
class CpuKernels:
    """The instruction set, and that of each operator's kernels, which may be a lesser one."""

    instructions: str
    operators: Mapping[str, str]


def hold_to(options: Any, instructions: str | None) -> None:
    """Let sessions of these options have no better kernels; before they get the library."""
    if instructions is not None:
        options.add_session_config_entry(_ENTRY, instructions)


def kernels_of(library: Path, held_to: str | None) -> CpuKernels | None:
    """What a session has that is held to that; None: the library is older, and does not tell."""
    asked = getattr(ctypes.CDLL(str(library.resolve())), "EnginewrightCpuKernels", None)
    if asked is None:
        return None
    asked.argtypes, asked.restype = [ctypes.c_char_p], ctypes.c_char_p
    told = asked(None if held_to is None else held_to.encode())
    if told is None:
        raise MemoryError(f"{library} has no memory to name its kernels")
    first, *others = told.decode().split()
    return CpuKernels(first, dict(each.split("=") for each in others))
