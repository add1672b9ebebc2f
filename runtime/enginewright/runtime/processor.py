"""This machine's processor: its name, and whether our operators have kernels of its own for it."""

from __future__ import annotations

import os
import platform
from collections.abc import Set
from pathlib import Path
from typing import Literal, get_args

from enginewright.runtime.errors import EnginewrightError

_VECTOR_FLAGS = {"x86_64": {"avx2", "fma", "f16c"}, "AMD64": {"avx2", "fma", "f16c"}}
_TILE_FLAGS = {"avx512vbmi", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16"}
InstructionSet = Literal["portable", "avx2", "avx2vnni", "avx512", "avx512vnni", "amx"]
"""Those that our operators have kernels for, the best one last."""
INSTRUCTION_SETS: tuple[InstructionSet, ...] = get_args(InstructionSet)
CPU_KERNELS = "ENGINEWRIGHT_CPU_KERNELS"
_WITHOUT_TILES = INSTRUCTION_SETS[:-1]
_LEGAL = {
    CPU_KERNELS: INSTRUCTION_SETS,
    "ENGINEWRIGHT_HUGE_PAGES": ("0", "1"),
}
"""The variables that our operators read, and their values; without one, or empty: the default."""


def check_variables() -> None:
    """Raise EnginewrightError where a variable that our operators read has no value of theirs."""
    for name, legal in _LEGAL.items():
        value = os.environ.get(name)
        if value and value not in legal:
            raise EnginewrightError(f"{name}={value}: one of {', '.join(legal)}, or unset it")


def processor_name(root: Path = Path("/")) -> str:
    """As the system calls it, or the architecture; ``root`` is where /proc lies."""
    return _field(root, "model name") or platform.processor() or platform.machine()


def why_plain_kernels(root: Path = Path("/")) -> str | None:
    """Why our operators run in plain C++ here; None where they need not."""
    return without_vectors(platform.machine(), processor_flags(root))


def without_vectors(architecture: str, flags: Set[str]) -> str | None:
    """What our operators' kernels lack on a processor with these flags; None if nothing.

    Where the system does not tell, nothing is taken to be lacking: the library finds out for
    itself.
    """
    wanted = _VECTOR_FLAGS.get(architecture)
    if wanted is None:
        return f"{architecture} has no kernels of theirs"
    missing = sorted(wanted - flags) if flags else []
    return f"this processor has no {', '.join(missing)}" if missing else None


def has_tile_kernels(root: Path = Path("/")) -> bool:
    """Whether our operators work in tiles of bfloat16 here (AMX) where weights have 4 bits.

    That is another arithmetic than that of all other processors.
    """
    if os.environ.get(CPU_KERNELS) in _WITHOUT_TILES:
        return False
    return platform.machine() in _VECTOR_FLAGS and processor_flags(root) >= _TILE_FLAGS


def processor_flags(root: Path = Path("/")) -> frozenset[str]:
    """What Linux says that it can do (``avx2``, ...); empty where the system does not tell."""
    return frozenset(_field(root, "flags").split())


def _field(root: Path, name: str) -> str:
    try:
        lines = (root / "proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2] for line in lines if line.split(":")[0].strip() == name)
    return next(values, "").strip()
