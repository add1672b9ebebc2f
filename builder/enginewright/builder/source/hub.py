"""A repository of the Hugging Face hub at a pinned commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source.base import Origin
from enginewright.builder.source.checkpoint import CheckpointSource, open_checkpoint
from enginewright.runtime.errors import SourceError

_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]


def open_hub(spec: SourceSpec) -> CheckpointSource:
    """Download what is not in the hub's cache yet, then open it as a checkpoint folder."""
    assert spec.hub is not None
    assert spec.revision is not None
    try:
        folder = snapshot_download(spec.hub, revision=spec.revision, allow_patterns=_WANTED)
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"{spec.hub}@{spec.revision}: the hub cannot be reached and its cache does not hold "
            f"the model ({error}); download it where there is a network, and give the folder as "
            f"source.path"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise SourceError(f"{spec.hub}@{spec.revision}: the hub refused: {error}") from error
    return open_checkpoint(
        Path(folder), Origin("hub", spec.hub, Path(folder), revision=spec.revision)
    )
