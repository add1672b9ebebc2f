"""How many cores this process may keep busy: its affinity, and the CPU quotas of its cgroups."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

MOST_THREADS = 256
"""That an engine may be asked for."""

_CGROUPS = "sys/fs/cgroup"

logger = logging.getLogger(__name__)


def available_cores(root: Path = Path("/")) -> int:
    """Cores to run threads on, at least 1; ``root`` is where /proc and /sys lie.

    A quota is rounded up: of one and a half cores the second thread still gets a half. Threads
    beyond a quota would only make all of them wait each time it is spent.
    """
    limits = [_allowed_cores(), *(math.ceil(quota) for quota in _quotas(root))]
    return max(1, min(limits))


def warn_of_threads(threads: int | None, root: Path = Path("/")) -> None:
    """Log where more threads are asked for than there are cores to run them on."""
    if threads is not None and threads > (cores := available_cores(root)):
        logger.warning(
            "threads=%d: this process may use %d cores, by its affinity and its container's quota; "
            "threads beyond that take turns, and decoding gets slower: give at most %d, or leave "
            "threads out",
            threads,
            cores,
            cores,
        )


def _allowed_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that this process's groups, and the groups around those, may use."""
    for folder in cgroups(root, "cpu"):
        quota = _quota(folder)
        if quota is not None:
            yield quota


def cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups that may limit ``controller``, and of those around.

    Lines of /proc/self/cgroup are ``number:controllers:/path``; version 2 names no controllers.
    In a container the path may be the host's: what is not there is skipped, the top never is.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers or controller in controllers.split(","):
            group = Path(path.lstrip("/"))
            for folder in (group, *group.parents):
                yield root / _CGROUPS / controllers / folder


def _quota(folder: Path) -> float | None:
    """Version 2 has one file, "quota period" or "max period"; version 1 has two, -1 for none."""
    words = _text(folder / "cpu.max").split() or [
        *_text(folder / "cpu.cfs_quota_us").split(),
        *_text(folder / "cpu.cfs_period_us").split(),
    ]
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def _text(path: Path) -> str:
    """Empty where the system has no such file or does not show it."""
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""
