"""An artifact's folder appears in its place at once, whole and on disk, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

_EXCHANGE = 2
_AT_FDCWD = -100


def publish(folder: Path, place: Path) -> None:
    """Flush the staged folder to disk and put it in its place at once.

    An artifact that was there is exchanged for the new one in one step, then removed.
    """
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    if not place.exists() and _appeared(folder, place):
        pass
    elif _exchange(folder, place):
        shutil.rmtree(folder)
    else:
        old = folder.with_suffix(".old")
        place.rename(old)
        folder.rename(place)
        shutil.rmtree(old)
    _sync(place.parent)


def _appeared(folder: Path, place: Path) -> bool:
    """Move the folder; False where another process has put its own there first."""
    try:
        folder.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders atomically; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, bytes(a), _AT_FDCWD, bytes(b), _EXCHANGE) == 0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
