"""The artifact's source as a Hugging Face checkpoint in fp32, for the builders of peers."""

from __future__ import annotations

import tempfile
from pathlib import Path

from enginewright.cli.bench.environment import bench_folder
from enginewright.cli.extras import require
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import SourceError


def checkpoint_of(artifact: Artifact, source_path: Path | None) -> Path:
    """The checkpoint, written if need be; the folder's name is the source's digest.

    ``source_path`` is where a source lies whose place the manifest does not tell. Raises
    SourceError if it is not the one that the artifact was built from.
    """
    wanted = artifact.manifest.source.digest
    path = bench_folder("checkpoints") / wanted.partition(":")[2][:16]
    if path.exists():
        return path
    require("build", "torch", "transformers", "pydantic")
    from enginewright.builder.recipe import SourceSpec
    from enginewright.builder.source import open_source
    from enginewright.builder.source.quiet import quiet_transformers

    stated = artifact.manifest.recipe["source"]
    if source_path is None and stated.keys() & {"path", "gguf"}:
        raise SourceError(
            f"{artifact.path}: built from {artifact.manifest.source.reference}; "
            f"say where that lies now: --source PATH"
        )
    spec = SourceSpec(**stated) if source_path is None else SourceSpec.at(source_path.resolve())
    source = open_source(spec)
    if source.digest != wanted:
        raise SourceError(
            f"{source.reference} has the digest {source.digest}, the artifact was built from "
            f"{wanted}: give the same source with --source PATH"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="making-") as scratch:
        made = Path(scratch) / "checkpoint"
        with quiet_transformers():
            source.reference_model().save_pretrained(made)
        source.write_tokenizer(made)
        made.rename(path)
    return path
