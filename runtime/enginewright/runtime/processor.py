"""This machine's processor: its name, and whether our operators have kernels of its own for it."""

from __future__ import annotations

import platform
from pathlib import Path

_VECTOR_FLAGS = {"x86_64": {"avx2", "fma", "f16c"}, "AMD64": {"avx2", "fma", "f16c"}}


def processor_name(root: Path = Path("/")) -> str:
    """As the system calls it, or the architecture; ``root`` is where /proc lies."""
    return _field(root, "model name") or platform.processor() or platform.machine()


def has_vector_kernels(root: Path = Path("/")) -> bool:
    """Whether our operators need not run in plain C++ here.

    In plain C++ they are slower than ONNX Runtime's own. Where the system does not tell, they are
    taken to have them: the library finds out for itself.
    """
    wanted = _VECTOR_FLAGS.get(platform.machine())
    if wanted is None:
        return False
    flags = processor_flags(root)
    return not flags or wanted <= flags


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
