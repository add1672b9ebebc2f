"""The stage cache: what a build takes over from earlier ones, an entry for every set of inputs.

    <user's cache>/enginewright/stages/<stage>/<key>/
        entry.json   the inputs by name, size and SHA-256 of each file
        ...          the files

``key`` digests the inputs. An entry appears by one rename, and a lock of its own lets one process
make it while others wait. Its files are hashed whenever it is used: a damaged one is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from enginewright.builder.disk import writing_to
from enginewright.builder.stage_inputs import Inputs, difference, distance
from enginewright.runtime.artifact.integrity import cache_folder, sha256_file
from enginewright.runtime.artifact.manifest import FileEntry
from enginewright.runtime.errors import BuildError

Make = Callable[[Path], None]
DEFAULT_LIMIT = 20 * 10**9
"""Bytes that the cache may hold after a build."""

_ENTRY = "entry.json"
_LINKED = 1 << 20
"""From this size on, files are shared with artifacts by hard links."""
_REMEDY = (
    "free some space (enginewright cache gc --max-size ...), or set XDG_CACHE_HOME to a folder "
    "where there is more"
)


@dataclass(frozen=True)
class Decision:
    """Whether a stage was taken from the cache, and why it was or was not."""

    stage: str
    hit: bool
    why: str

    def __str__(self) -> str:
        return f"{self.stage}: {'taken from the cache' if self.hit else 'ran'}: {self.why}"


@dataclass(frozen=True)
class Entry:
    """What the cache holds for one stage and set of inputs; ``used``: seconds since the epoch."""

    stage: str
    key: str
    folder: Path
    inputs: Inputs
    files: Mapping[str, FileEntry]
    used: float

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    def damage(self) -> str | None:
        """What is wrong with its files; None: nothing."""
        for name, expected in self.files.items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected.size:
                return f"{name} has {path.stat().st_size} bytes, {expected.size} were written"
            if sha256_file(path) != expected.sha256:
                return f"{name} has another SHA-256 than what was written"
        return None


@dataclass(frozen=True)
class Leftover:
    """A folder of the cache that no build can use: half-made, or with a damaged record."""

    stage: str
    key: str
    folder: Path
    size: int
    used: float


def digest(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, in hex, independent of the order of keys."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _silent(line: str) -> None:
    """Told to nobody."""


class StageCache:
    """The entries of this user, as one build sees them; ``decisions`` are what it has met.

    ``tell`` gets a line when a build has to wait, or finds what is damaged or was left half-made.
    """

    def __init__(self, tell: Callable[[str], None] = _silent) -> None:
        self._tell = tell
        self.decisions: list[Decision] = []

    @contextlib.contextmanager
    def entry(self, stage: str, inputs: Inputs, make: Make) -> Iterator[Path]:
        """The folder of the stage's entry, made by ``make(folder)`` if need be; held until the end.

        Raises BuildError where the cache folder is full or cannot be written.
        """
        place = _root() / stage / digest(inputs)
        with contextlib.ExitStack() as held:
            with _writing():
                place.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(self._lock(place))
                self._clear_partial(place)
                reason = self._why_not(place, inputs)
                if reason is not None:
                    _fill(place, inputs, make)
                os.utime(place / _ENTRY)
            hit = reason is None
            self.decisions.append(Decision(stage, hit, reason or "no input changed"))
            yield place

    def holds(self, stage: str, inputs: Inputs) -> bool:
        """Whether there is an entry; whether it is sound is found out when it is used."""
        return (_root() / stage / digest(inputs) / _ENTRY).is_file()

    @contextlib.contextmanager
    def _lock(self, place: Path) -> Iterator[None]:
        lock = FileLock(_lock_file(place))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._tell(f"{place.parent.name}: waiting for another build, which makes the same")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _clear_partial(self, place: Path) -> None:
        left = _partial(place)
        if left.exists():  # whoever made it is gone: its lock is ours
            shutil.rmtree(left)
            self._tell(
                f"{place.parent.name}: a build ended while it made this; what it left is removed"
            )

    def _why_not(self, place: Path, inputs: Inputs) -> str | None:
        """Why the entry must be made; None if it is there and sound."""
        if not place.exists():
            return _nearest(place.parent, inputs)
        entry = _read(place)
        damage = f"{_ENTRY} cannot be read" if entry is None else entry.damage()
        if damage is None:
            return None
        shutil.rmtree(place)
        why = f"the cache's entry was damaged ({damage})"
        self._tell(f"{place.parent.name}: {why}; it is made again")
        return why


def cached_file(stage: str, inputs: Inputs, name: str, make: Make) -> Path:
    """The one file of a stage's entry, made by ``make(path)`` if it is not there yet."""
    with StageCache().entry(stage, inputs, lambda folder: make(folder / name)) as folder:
        return folder / name


def entries() -> list[Entry]:
    """All of the cache that can be read, the latest used first."""
    found = [_read(path.parent) for path in _root().glob(f"*/*/{_ENTRY}")]
    return sorted((each for each in found if each), key=lambda each: each.used, reverse=True)


def leftovers() -> list[Leftover]:
    """What ended builds left half-made, and what is damaged; a build at work holds none of it."""
    found = []
    for folder in _root().glob("*/*/"):
        key = folder.name.removeprefix(".").removesuffix(".partial")
        if folder.name == key and _read(folder) is not None:
            continue
        with _unheld(folder.with_name(key)) as free:
            if free and folder.is_dir():
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                used = folder.stat().st_mtime
                found.append(Leftover(folder.parent.name, key, folder, size, used))
    return found


def collect(limit: int) -> list[Entry | Leftover]:
    """Remove leftovers, and what was not used for longest until ``limit`` bytes are left.

    Returns what was removed. What a build holds at the moment stays.
    """
    held = entries()
    removed: list[Entry | Leftover] = [each for each in leftovers() if _remove(each)]
    total = sum(entry.size for entry in held)
    for entry in reversed(held):
        if total <= limit:
            break
        if _remove(entry):
            removed.append(entry)
            total -= entry.size
    _remove_locks()
    return removed


def place_file(source: Path, target: Path) -> None:
    """Put a file of the cache into an artifact: large ones as another name of the same file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size >= _LINKED:
        with contextlib.suppress(OSError):  # another file system, or one without hard links
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def files_of(folder: Path) -> list[str]:
    """What an entry holds, by paths relative to its folder."""
    entry = _read(folder)
    assert entry is not None, "the entry is held"
    return sorted(entry.files)


def _root() -> Path:
    root = cache_folder()
    if root is None:
        raise BuildError(
            "no usable cache folder: set XDG_CACHE_HOME to a folder that you own and nobody else "
            "may write to"
        )
    return root / "stages"


def _writing() -> contextlib.AbstractContextManager[None]:
    return writing_to(_root().parent, "the cache folder ", _REMEDY)


def _fill(place: Path, inputs: Inputs, make: Make) -> None:
    partial = _partial(place)
    partial.mkdir()
    try:
        make(partial)
        files = {
            path.relative_to(partial).as_posix(): asdict(_file_entry(path))
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        text = json.dumps({"inputs": dict(inputs), "files": files}, indent=1, sort_keys=True)
        (partial / _ENTRY).write_text(text, encoding="utf-8")
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _file_entry(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, sha256_file(path))


def _remove(each: Entry | Leftover) -> bool:
    """Whether it was nobody's, and is gone."""
    place = each.folder.with_name(each.key)
    with _unheld(place) as free:
        if not free or not each.folder.is_dir():
            return False
        if each.folder == place:
            place.rename(_partial(place))
        shutil.rmtree(_partial(place))
    return True


def _remove_locks() -> None:
    """Those of entries that are gone; who waits for one finds out that it was removed."""
    for path in _root().glob("*/.*.lock"):
        place = path.with_name(path.name.removeprefix(".").removesuffix(".lock"))
        with _unheld(place) as free:
            if free and not place.exists() and not _partial(place).exists():
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _unheld(place: Path) -> Iterator[bool]:
    """Whether no build holds the entry; if so, none does until the end."""
    lock = FileLock(_lock_file(place))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock_file(place: Path) -> Path:
    return place.parent / f".{place.name}.lock"


def _partial(place: Path) -> Path:
    return place.parent / f".{place.name}.partial"


def _nearest(folder: Path, inputs: Inputs) -> str:
    """What changed against the entry of the stage that is most alike."""
    others = (_read(path) for path in folder.iterdir() if path.name[0] != ".")
    known = sorted((each for each in others if each), key=lambda each: -each.used)
    if not known:
        return "the cache holds nothing of this stage yet"
    nearest = min(known, key=lambda each: distance(each.inputs, inputs))
    return f"changed: {difference(nearest.inputs, inputs)}"


def _read(folder: Path) -> Entry | None:
    record = folder / _ENTRY
    try:
        data = json.loads(record.read_text("utf-8"))
        files = {name: FileEntry(**each) for name, each in data["files"].items()}
        used = record.stat().st_mtime
        return Entry(folder.parent.name, folder.name, folder, dict(data["inputs"]), files, used)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
