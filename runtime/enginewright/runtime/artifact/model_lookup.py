"""What LLM's ``model`` names: an artifact's folder, or what an artifact was built from here."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from enginewright.runtime.artifact.local_artifacts import LocalArtifact, local_artifacts
from enginewright.runtime.artifact.manifest import MANIFEST_NAME
from enginewright.runtime.errors import ArtifactNotFoundError

logger = logging.getLogger(__name__)

DEFAULT_PRECISION = "int8"
_GGUF = b"GGUF"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_artifact(
    model: str | os.PathLike[str], *, revision: str | None = None, precision: str | None = None
) -> Path:
    """The artifact's folder: ``model`` itself, or the newest one that was built from it here.

    ``revision`` chooses among artifacts of a hub's repository, ``precision`` among all. Raises
    ArtifactNotFoundError with the command that builds one. A folder that is neither an artifact
    nor a checkpoint is returned as it is: opening it tells what is wrong.
    """
    path, name = Path(model), os.fspath(model)
    if (path / MANIFEST_NAME).is_file():
        return path
    if path.is_file() or (path / "config.json").is_file():
        place = str(path.resolve())
        built = [each for each in local_artifacts() if each.source.location == place]
        if not built and path.is_file():
            _check_gguf(name, path)
        what = "checkpoint" if path.is_dir() else "file"
        return _chosen(name, f"is a {what}, no artifact", _unchanged(name, built), precision)
    if path.exists():
        return path
    built = [each for each in local_artifacts() if _is_of(each, name, revision)]
    if not built and _REPOSITORY.fullmatch(name) is None:
        return path
    return _chosen(name, "no such folder", built, precision, revision)


def build_command(source: str, precision: str | None = None, revision: str | None = None) -> str:
    """The command line that builds an artifact from a checkpoint, a GGUF file or a hub's id."""
    settings = [f"precision={precision or DEFAULT_PRECISION}"]
    if revision is not None:
        settings.append(f"source.revision={revision}")
    told = " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
    return f"enginewright build --source {shlex.quote(source)} {told} --output artifacts"


def _check_gguf(name: str, path: Path) -> None:
    """Of other files nothing can be built."""
    try:
        with path.open("rb") as file:
            if file.read(len(_GGUF)) == _GGUF:
                return
        problem = "is a file, and no GGUF file"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    beside = (path.parent / MANIFEST_NAME).is_file()
    hint = f"; {path.parent} is one, give that" if beside else ""
    raise ArtifactNotFoundError(f"{name}: {problem}; an artifact's folder is expected{hint}")


def _is_of(artifact: LocalArtifact, repository: str, revision: str | None) -> bool:
    source = artifact.manifest.source
    named = source.kind == "hub" and source.reference == repository
    return named and revision in (None, source.revision)


def _unchanged(name: str, built: Sequence[LocalArtifact]) -> list[LocalArtifact]:
    """Without those whose source is another one by now; an error where none is left of some."""
    changed = {each.path: each.source.changed_file() for each in built}
    kept = [each for each in built if changed[each.path] is None]
    if built and not kept:
        path = built[0].path
        raise ArtifactNotFoundError(
            f"{name}: {changed[path]} was changed since {path} was built from it. Build it again, "
            f"or give the path of that artifact to use it as it is:\n"
            f"    {build_command(name, built[0].precisions[0])}"
        )
    return kept


def _chosen(
    name: str,
    problem: str,
    built: Sequence[LocalArtifact],
    precision: str | None,
    revision: str | None = None,
) -> Path:
    """The newest artifact in the wanted precision."""
    fitting = [each for each in built if precision is None or precision in each.precisions]
    if not fitting:
        wanted = "" if precision is None else f" in {precision}"
        wanted += "" if revision is None else f" at revision {revision}"
        others = "".join(f"; there is {each.path} ({each.precisions[0]})" for each in built)
        raise ArtifactNotFoundError(
            f"{name}: {problem}, and no artifact was built from it on this machine{wanted}"
            f"{others}. Build one with\n"
            f"    {build_command(name, precision, revision)}\n"
            f"and give the same name again, or the path that the command prints"
        )
    newest = fitting[0]
    level = logging.INFO if len(fitting) == 1 else logging.WARNING
    passed = "".join(f"; older: {each.path}" for each in fitting[1:])
    logger.log(level, "%s: using %s (%s)%s", name, newest.path, newest.precisions[0], passed)
    return newest.path
