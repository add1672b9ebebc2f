"""Hashes of files, and this machine's memory of the large ones that were already hashed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path | None:
    """The user's cache folder for Enginewright (mode 0700), or None where none is safe to use.

    A folder that another user owns, or may write to, is not used: what it says proves nothing.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():  # the XDG specification says to ignore relative paths
            base = Path.home() / ".cache"
        folder = base / "enginewright"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # no home folder, or a read-only one
        return None
    foreign = hasattr(os, "getuid") and found.st_uid != os.getuid()
    shared = bool(stat.S_IMODE(found.st_mode) & 0o022)
    return None if foreign or shared else folder


@dataclass(frozen=True)
class FileState:
    """What tells that a file is still the one that was hashed.

    ``ctime_ns`` moves with every write and cannot be set, so that a file whose content was changed
    is told even where size, inode and mtime were put back.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int

    @staticmethod
    def of(path: Path) -> FileState:
        found = path.stat()
        return FileState(
            path=str(path.resolve()),
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
            device=found.st_dev,
            inode=found.st_ino,
        )


class VerifiedFiles:
    """Which files had which SHA-256 when they were last hashed on this machine.

    One small record a file, replaced atomically, so that processes need no lock.
    Without a folder nothing is remembered and every file is hashed anew.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder / "verified"

    def knows(self, state: FileState, sha256: str) -> bool:
        """Whether the file, in this very state, was found to have this hash."""
        if self._folder is None:
            return False
        try:
            found = json.loads(self._record(self._folder, state).read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return bool(found == self._content(state, sha256))

    def remember(self, state: FileState, sha256: str) -> None:
        """Note the hash; a cache that cannot be written only costs time at the next load."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self._content(state, sha256), file)
            Path(temporary).replace(self._record(self._folder, state))

    @staticmethod
    def _record(folder: Path, state: FileState) -> Path:
        return folder / f"{hashlib.sha256(state.path.encode()).hexdigest()[:32]}.json"

    @staticmethod
    def _content(state: FileState, sha256: str) -> dict[str, str | int]:
        return {**asdict(state), "sha256": sha256}
