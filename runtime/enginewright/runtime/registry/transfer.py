"""Push an artifact to a registry, and pull one, which appears when all of it is right."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from enginewright.runtime.artifact.artifact import Artifact, read_manifest, sha256_file
from enginewright.runtime.artifact.manifest import MANIFEST_NAME
from enginewright.runtime.artifact.publishing import publish
from enginewright.runtime.errors import ArtifactError, PolicyError, RegistryError
from enginewright.runtime.registry.client import Repository
from enginewright.runtime.registry.package import (
    EMPTY,
    MANIFEST_TYPE,
    Layer,
    digest_of,
    image_manifest,
    layers_of,
    read_layers,
)
from enginewright.runtime.registry.reference import Reference

Tell = Callable[[str], None]
Check = Callable[[Artifact], None]


@dataclass(frozen=True)
class Moved:
    """What was done: the reference with its digest; bytes sent or fetched, and bytes spared."""

    reference: Reference
    path: Path
    moved: int
    spared: int


def push(path: Path, reference: Reference, *, plain_http: bool = False, tell: Tell) -> Moved:
    """Send an artifact, after a check of every file. What the registry has is not sent again.

    Raises RegistryError for a reference with a digest, among others: it would not be kept to.
    """
    if reference.digest is not None:
        raise RegistryError(
            f"{reference}: a push names a tag, and its digest follows from the artifact; leave "
            f"@sha256:... out"
        )
    artifact = Artifact.open(path, verify="always")
    repository = Repository(reference, plain_http=plain_http)
    layers, moved, spared = layers_of(artifact), 0, 0
    for layer in {layer.digest: layer for layer in layers}.values():
        if repository.has_blob(layer.digest):
            spared += layer.size
            tell(f"{layer.path}: is there already")
            continue
        repository.upload(artifact.path / layer.path, layer.digest)
        moved += layer.size
        tell(f"{layer.path}: {layer.size} bytes sent")
    if not repository.has_blob(digest_of(EMPTY)):
        repository.upload_bytes(EMPTY, digest_of(EMPTY))
    content = image_manifest(artifact, layers)
    repository.put_manifest(content, MANIFEST_TYPE)
    pinned = replace(reference, digest=digest_of(content).removeprefix("sha256:"))
    return Moved(pinned, path, moved, spared)


def pull(
    reference: Reference,
    output: Path,
    *,
    plain_http: bool = False,
    check: Check = lambda artifact: None,
    tell: Tell,
) -> Moved:
    """Fetch an artifact into a folder of its name below ``output``.

    Every byte is held to its hash, the whole to its manifest, and ``check`` may refuse it, before
    it appears. What an earlier pull that was cut off has fetched is used, and so are equal files
    of artifacts in ``output``.
    """
    repository = Repository(reference, plain_http=plain_http)
    content = repository.manifest()
    digest = digest_of(content)
    if reference.digest is not None and digest != f"sha256:{reference.digest}":
        raise RegistryError(f"{reference}: the registry sent something else, {digest}; try again")
    layers = read_layers(content, str(reference))
    pinned = replace(reference, digest=digest.removeprefix("sha256:"))
    with _scratch(output, digest) as folder:
        fetched = _fetch_all(layers, folder, repository, output, tell)
        artifact = Artifact.open(folder, verify="always")
        _check_complete(artifact, layers)
        check(artifact)
        place = output / _name(artifact)
        _check_place(place)
        publish(folder, place)
    return Moved(pinned, place, fetched, sum(each.size for each in layers) - fetched)


@contextlib.contextmanager
def _scratch(output: Path, digest: str) -> Iterator[Path]:
    """The hidden folder of this pull, held by one process; it stays for the next if this fails.

    What is whole, and refused, does not stay.
    """
    name = f".pull-{digest[7:23]}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        with (output / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RegistryError(
                    f"{output}: another process is pulling the same artifact; wait for it"
                ) from None
            (output / name).mkdir(exist_ok=True)
            try:
                yield output / name
            except PolicyError:  # what was fetched stays what it is: no retry will do
                shutil.rmtree(output / name)
                (output / f"{name}.lock").unlink()
                raise
            (output / f"{name}.lock").unlink()
    except OSError as error:
        raise RegistryError(
            f"{error.filename or output}: {error.strerror}; what was fetched is kept for the next "
            f"try"
        ) from error


def _fetch_all(
    layers: Sequence[Layer], folder: Path, repository: Repository, output: Path, tell: Tell
) -> int:
    """Bring every file into the folder, each content once; how many bytes were fetched."""
    fetched, first = 0, dict[str, Path]()
    for layer in layers:
        path = folder / layer.path
        same = first.setdefault(layer.digest, path)
        if same == path:
            fetched += _fetch(layer, folder, repository, output, tell)
        elif not _is(layer, path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _link(same, path)
            tell(f"{layer.path}: is the same as {same.relative_to(folder).as_posix()}")
    return fetched


def _fetch(layer: Layer, folder: Path, repository: Repository, output: Path, tell: Tell) -> int:
    """Bring one file into the folder; how many bytes were fetched for it."""
    path = folder / layer.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is(layer, path):
        return 0
    if _lend(layer, path, output):
        tell(f"{layer.path}: is here already")
        return 0
    part = path.with_name(f"{path.name}.part")
    for _ in range(2):
        have = part.stat().st_size if part.exists() else 0
        if layer.size == 0:
            part.touch()
        repository.download(layer.digest, layer.size, part)
        if _is(layer, part):
            part.replace(path)
            tell(f"{layer.path}: {layer.size - min(have, layer.size)} bytes fetched")
            return layer.size - min(have, layer.size)
        part.unlink()  # what an earlier pull left may be damaged: once more from the start
    raise RegistryError(
        f"{layer.path}: what the registry sent is not what its digest says; the registry, or what "
        f"lies between, is damaged. Nothing of it is used"
    )


def _is(layer: Layer, path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != layer.size:
        return False
    return sha256_file(path) == layer.sha256


def _lend(layer: Layer, path: Path, output: Path) -> bool:
    """Take the file from an artifact beside, as a link where the system can."""
    for manifest in output.glob(f"*/{MANIFEST_NAME}"):
        try:
            files = read_manifest(manifest.parent).files
        except ArtifactError:
            continue
        for name, entry in files.items():
            other = manifest.parent / name
            if entry.sha256 != layer.sha256 or not _is(layer, other):
                continue
            _link(other, path)
            return True
    return False


def _link(source: Path, path: Path) -> None:
    """The same file under another name, or a copy where the system cannot have that."""
    path.unlink(missing_ok=True)
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def _check_complete(artifact: Artifact, layers: Sequence[Layer]) -> None:
    """Nothing may lie in the folder that is neither listed nor evidence."""
    known = {MANIFEST_NAME, *artifact.manifest.files}
    for layer in layers:
        if layer.path not in known and not layer.path.startswith("evidence/"):
            raise RegistryError(f"{layer.path}: is in the registry, and not in the manifest")


def _name(artifact: Artifact) -> str:
    """The artifact's name, if a folder may be called so."""
    name = artifact.manifest.name
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name) is None:
        raise RegistryError(f"the artifact calls itself {name!r:.80}, which is no folder's name")
    return name


def _check_place(place: Path) -> None:
    """An artifact may be replaced; anything else that stands there is somebody's."""
    if not place.exists() and not place.is_symlink():
        return
    if place.is_symlink() or not (place / MANIFEST_NAME).is_file():
        raise RegistryError(
            f"{place} exists and is no artifact; move it away, or choose another --output"
        )
