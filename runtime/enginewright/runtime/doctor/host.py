"""The machine: its platform and processor, and the memory that this process may still take."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

from enginewright.runtime.artifact.native_code import this_platform
from enginewright.runtime.cores import cgroups
from enginewright.runtime.doctor.facts import HostFacts

_UNLIMITED = 2**60
"""Version 1 writes a number near 2**63 where there is no limit."""


def read_host(root: Path = Path("/")) -> HostFacts:
    """What the system tells; ``root`` is where /proc and /sys lie."""
    cpu = _text(root / "proc/cpuinfo")
    flags = _field(cpu, "flags")
    return HostFacts(
        platform=this_platform(),
        processor=_field(cpu, "model name") or platform.processor() or platform.machine(),
        available_bytes=min([*_system(root), *_groups(root)], default=None),
        features=frozenset(flags.split()) if flags else None,
    )


def _system(root: Path) -> Iterator[int]:
    available = _field(_text(root / "proc/meminfo"), "MemAvailable").removesuffix("kB").strip()
    if available.isdecimal():
        yield 1024 * int(available)


def _groups(root: Path) -> Iterator[int]:
    """What each group around this process has left of its limit, its file cache counted as free."""
    for folder in cgroups(root, "memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        used = _number(folder, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < _UNLIMITED:
            yield max(0, limit - used + _file_cache(folder))


def _file_cache(folder: Path) -> int:
    """Bytes of cached files that the kernel gives up first."""
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdecimal():
            return int(value)
    return 0


def _number(folder: Path, *names: str) -> int | None:
    """Of the files that version 2 and 1 call so, the one that is there."""
    texts = [_text(folder / name).strip() for name in names]
    return next((int(text) for text in texts if text.isdecimal()), None)


def _field(text: str, name: str) -> str:
    """The value of the first line ``name : value``."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
