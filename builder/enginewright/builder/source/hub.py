"""A repository of the Hugging Face hub at a pinned commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported lazily

from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source.base import Origin
from enginewright.builder.source.checkpoint import CheckpointSource, open_checkpoint
from enginewright.runtime.errors import SourceError

_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
_SECONDS = 10.0


def open_hub(spec: SourceSpec) -> CheckpointSource:
    """Download what is not in the hub's cache yet, then open it as a checkpoint folder."""
    assert spec.hub is not None
    assert spec.revision is not None
    problem = _ask(spec.hub, spec.revision)
    try:
        folder = snapshot_download(
            spec.hub,
            revision=spec.revision,
            allow_patterns=_WANTED,
            local_files_only=problem is not None,
        )
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"{spec.hub}@{spec.revision}: the hub cannot be reached or refuses, and its cache on "
            f"this machine does not hold the model: {problem or error}. Download it where there "
            f"is a network, and give the folder as source.path"
        ) from error
    except (HfHubHTTPError, httpx.TransportError, OSError) as error:
        raise SourceError(f"{spec.hub}@{spec.revision}: the download failed: {error}") from error
    return open_checkpoint(
        Path(folder), Origin("hub", spec.hub, Path(folder), revision=spec.revision)
    )


def newest_commit(repository: str) -> str:
    """The commit that the repository's main branch is at; offline, as this machine last saw it."""
    try:
        sha = HfApi().model_info(repository, timeout=_SECONDS).sha
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled) as error:
        seen = try_to_load_from_cache(repository, "config.json")
        if not isinstance(seen, str):
            raise SourceError(
                f"{repository}: the hub cannot be reached or refuses, and its cache on this "
                f"machine does not hold the model: {error}. Download it where there is a network, "
                f"and give the folder as the source"
            ) from error
        return Path(seen).parent.name
    if sha is None:
        raise SourceError(f"{repository}: the hub names no commit; give one as source.revision")
    return sha


def _ask(repository: str, revision: str) -> Exception | None:
    """Why the hub does not offer the commit; asked first, for a download would retry long."""
    try:
        HfApi().repo_info(repository, revision=revision, timeout=_SECONDS)
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled) as error:
        return error
    return None
