"""Virtual environments under the user's cache folder: made once by pip, found again by a key."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.errors import EnginewrightError

_SOURCE_SUFFIXES = frozenset({".py", ".toml"})


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self) -> Path:
        """Where packages are installed."""
        found = sorted(self.folder.glob("[Ll]ib/**/site-packages"))
        if not found:
            raise EnginewrightError(f"{self.folder}: not a virtual environment; remove it")
        return found[0]

    def installed_bytes(self) -> int:
        """What the installed packages take, compiled modules included."""
        return sum(path.stat().st_size for path in self.packages.rglob("*") if path.is_file())


def bench_folder(name: str) -> Path:
    """A folder under the user's cache folder, made if need be."""
    cache = cache_folder()
    if cache is None:
        raise EnginewrightError(
            "no cache folder that is this user's alone: set XDG_CACHE_HOME to a folder of yours"
        )
    folder = cache / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def environment(
    folder: Path,
    requirements: Sequence[str],
    *,
    unwanted: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Environment:
    """The environment with exactly these requirements in ``folder``, made if it is not there.

    ``unwanted`` are packages that come along and are taken out again; ``variables`` tell pip how to
    compile what has no wheel.
    """
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as scratch:
            made = Environment(Path(scratch) / "environment")
            venv.create(made.folder, with_pip=False, symlinks=os.name != "nt")
            into = ("--python", str(made.python))
            # Else pip takes what it compiled once, by other variables or on another machine.
            cache = ("--no-cache-dir",) if variables else ()
            pip(*into, "install", "--quiet", *cache, *requirements, variables=variables)
            if unwanted:
                pip(*into, "uninstall", "--quiet", "--yes", *unwanted)
            made.folder.rename(folder)
    return Environment(folder)


def pip(*arguments: str, variables: Mapping[str, str] | None = None) -> None:
    """Run this environment's pip; raises EnginewrightError with its last words."""
    command = [sys.executable, "-m", "pip", *arguments]
    if importlib.util.find_spec("pip") is None:
        raise EnginewrightError(f"{sys.executable} has no pip: install pip into it")
    variables = {**os.environ, **(variables or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-8:])
        raise EnginewrightError(f"pip {' '.join(arguments)}: exit status {done.returncode}\n{tail}")


def own_requirement(extra: str) -> tuple[str, str]:
    """How pip gets this very version of enginewright, and a key that changes when it does.

    An installation from a folder (editable or not) is installed from that folder again.
    """
    distribution = importlib.metadata.distribution("enginewright")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    url = urlsplit(origin.get("url", ""))
    folder = Path(unquote(url.path))
    if url.scheme == "file" and (folder / "pyproject.toml").is_file():
        return f"{folder}[{extra}]", f"{distribution.version}-{_state(folder)}"
    return f"enginewright[{extra}]=={distribution.version}", distribution.version


def _state(folder: Path) -> str:
    """A short digest of the sources in a project's folder."""
    digest = hashlib.sha256()
    parts = [folder / "pyproject.toml"]
    for root in ("runtime", "builder", "plugins"):
        parts += [p for p in (folder / root).rglob("*") if p.suffix in _SOURCE_SUFFIXES]
    for path in sorted(parts):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
