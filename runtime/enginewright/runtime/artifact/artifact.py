"""The artifact's folder: find it, read its manifest, prove that its files are the built ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from enginewright.runtime.artifact.integrity import (
    FileState,
    VerifiedFiles,
    cache_folder,
    sha256_file,
)
from enginewright.runtime.artifact.manifest import (
    MANIFEST_NAME,
    EngineEntry,
    FileEntry,
    Manifest,
    contradiction,
    parse_manifest,
    wrong_kernels,
)
from enginewright.runtime.errors import (
    ArtifactError,
    ArtifactNotFoundError,
    EnginewrightError,
    IntegrityError,
    TargetError,
)

__all__ = ["SMALL_FILE", "Artifact", "Verify", "sha256_file"]

Verify = Literal["always", "cached", "never"]

SMALL_FILE = 16 * 2**20
"""Files up to this size are hashed at every load; larger ones are weights."""

NATIVE_SUFFIXES = frozenset({".so", ".dll", ".dylib", ".pyd", ".cubin", ".ptx", ".fatbin"})
"""Files that a processor executes: hashed at every load, as an engine's library is, whatever their
size and name."""


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files were checked when it was opened. Nothing is ever written to it."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: str | os.PathLike[str], verify: Verify = "cached") -> Artifact:
        """Read and check the artifact at ``path``.

        Every size, and the hashes of small files and of native code, are always checked.
        Weights are hashed with "always"; with "cached" when this machine has not yet hashed
        the file as it is now (path, size, mtime, ctime, device, inode); with "never" not at all.
        """
        if verify not in get_args(Verify):
            legal = ", ".join(map(repr, get_args(Verify)))
            raise EnginewrightError(f"verify={verify!r}: legal values are {legal}")
        folder = Path(path)
        manifest = read_manifest(folder)
        artifact = Artifact(folder, manifest)
        artifact.check_names()
        verified = VerifiedFiles(None if verify == "never" else cache_folder())
        libraries = {entry.library for entry in manifest.engines}
        libraries |= {
            entry.model for entry in manifest.engines if entry.nvidia and entry.nvidia.host_code
        }
        for relative, entry in sorted(manifest.files.items()):
            native = relative in libraries or Path(relative).suffix in NATIVE_SUFFIXES
            _check_file(folder, relative, entry, verify, verified, native=native)
        return artifact

    def engine(self, target: str | None = None) -> EngineEntry:
        """The preferred engine for ``target``; without one, the artifact's first."""
        return self.plans(target)[0]

    def plans(self, target: str | None = None, plan: str | None = None) -> tuple[EngineEntry, ...]:
        """The engines for ``target`` (by default for all of them), the preferred one first.

        ``plan``: only the one of that name. Raises TargetError where there is none.
        """
        engines = self.manifest.engines
        found = [entry for entry in engines if target is None or entry.target == target]
        if not found:
            held = ", ".join(dict.fromkeys(entry.target for entry in engines)) or "none"
            raise TargetError(
                f"{self.path}: no engine for target {target!r}; this artifact holds: {held}. "
                f"Ask for one of those, or build again with --set target={target or 'cpu'}"
            )
        named = tuple(entry for entry in found if plan is None or entry.plan == plan)
        if not named:
            held = ", ".join(entry.plan for entry in found)
            raise TargetError(
                f"{self.path}: no plan {plan!r} for target {target or 'any'!r}; this artifact "
                f"holds: {held}"
            )
        return named

    def digest(self) -> str:
        """The digest of everything in the artifact: its manifest holds every file's hash."""
        return f"sha256:{sha256_file(self.path / MANIFEST_NAME)}"

    def holds(self, relative: str) -> bool:
        """Whether the manifest lists the file; files that it does not list are never read."""
        return relative in self.manifest.files

    def file(self, relative: str) -> Path:
        """Path of a file that the manifest lists (and that opening has therefore checked)."""
        if not self.holds(relative):
            raise IntegrityError(
                f"{self.path}: the manifest lists no file {relative!r}, which is needed; "
                f"build the artifact again"
            )
        return self.path / relative

    def evidence(self, relative: str) -> Path:
        """Where a file of evidence is to be written; raises ArtifactError where that would be
        outside of the artifact."""
        link = _link_in(self.path, PurePosixPath(relative).parent)
        if link is not None:
            raise ArtifactError(
                f"{link}: is a symbolic link, so that {relative} would be written outside of the "
                f"artifact; put a folder in its place"
            )
        return self.path / relative

    def check_names(self) -> None:
        """A manifest may only name files inside the folder, and engines only files it lists; what
        it says of an engine must fit together.

        Raises ArtifactError.
        """
        for relative in self.manifest.files:
            name = PurePosixPath(relative)
            if name.is_absolute() or ".." in name.parts or "\\" in relative or not name.parts:
                raise ArtifactError(
                    f"{self.path}: the manifest names {relative!r}, which is not a path inside "
                    f"the artifact; do not use this artifact"
                )
        for entry in self.manifest.engines:
            for relative in (
                entry.model,
                *entry.files,
                *([entry.library] if entry.library else []),
            ):
                self.file(relative)
            reason = contradiction(entry) or wrong_kernels(entry, self.manifest.tuning)
            if reason is not None:
                raise ArtifactError(
                    f"{self.path}: the manifest's plan {entry.plan} {reason}; do not use this "
                    f"artifact, build it again"
                )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the artifact at ``folder``, without a look at its files.

    Raises ArtifactNotFoundError, SchemaVersionError, IntegrityError, ArtifactError.
    """
    return parse_manifest(_manifest_text(folder), str(folder / MANIFEST_NAME))


def _manifest_text(folder: Path) -> str:
    if not folder.exists():
        raise ArtifactNotFoundError(f"{folder}: no such folder; an artifact's path is expected")
    try:
        return (folder / MANIFEST_NAME).read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactNotFoundError(f"{folder}: {_what_it_is(folder)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{folder / MANIFEST_NAME}: cannot be read ({error})") from error


def _what_it_is(folder: Path) -> str:
    build = f"build an artifact from it with: enginewright build --source {folder}"
    if folder.is_file():
        hint = f"; it is a GGUF file, {build}" if folder.suffix == ".gguf" else ""
        return f"is a file; an artifact is a folder with a {MANIFEST_NAME}{hint}"
    if (folder / "config.json").exists():
        return f"is a checkpoint, not an artifact; {build}"
    return f"holds no {MANIFEST_NAME}, so it is not an artifact"


def _link_in(folder: Path, relative: PurePosixPath) -> Path | None:
    """The first part of a path below the folder that is a symbolic link."""
    path = folder
    for part in relative.parts:
        path /= part
        if path.is_symlink():
            return path
    return None


def _check_file(
    folder: Path,
    relative: str,
    entry: FileEntry,
    verify: Verify,
    verified: VerifiedFiles,
    *,
    native: bool,
) -> None:
    path = folder / relative
    again = "copy or build the artifact again"
    link = _link_in(folder, PurePosixPath(relative))
    if link is not None:
        raise IntegrityError(
            f"{link}: is a symbolic link; the files of an artifact must lie in its folder; {again}"
        )
    try:
        state = FileState.of(path)
        if not path.is_file():
            raise IntegrityError(f"{path}: is not a file; {again}")
        if state.size != entry.size:
            kind = "truncated" if state.size < entry.size else "altered"
            raise IntegrityError(
                f"{path}: {state.size} bytes found, {entry.size} in the manifest: the file was "
                f"{kind}; {again}"
            )
        always = entry.size <= SMALL_FILE or native
        known = verify == "cached" and verified.knows(state, entry.sha256)
        if not always and (verify == "never" or known):
            return
        found = sha256_file(path)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: the file is missing; {again}") from None
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error}); {again}") from error
    if found != entry.sha256:
        raise IntegrityError(
            f"{path}: SHA-256 {found} found, {entry.sha256} in the manifest: the file was "
            f"altered; {again}"
        )
    if not always:
        verified.remember(state, entry.sha256)
