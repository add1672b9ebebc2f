"""What an artifact was built from, as the builders of peers take it: a checkpoint, a GGUF file."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from enginewright.cli.bench.environment import bench_folder
from enginewright.cli.extras import require
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import SourceError

if TYPE_CHECKING:
    from enginewright.builder.source import Source


@dataclass(frozen=True)
class PeerSource:
    """The source of an artifact, found again. ``stated``: where it lies, if the user said so."""

    artifact: Artifact
    stated: Path | None = None

    @property
    def digest(self) -> str:
        return self.artifact.manifest.source.digest

    @property
    def key(self) -> str:
        """Names what was made from this source in caches."""
        return self.digest.partition(":")[2][:16]

    def gguf(self) -> Path:
        """The GGUF file that it is; raises SourceError if it is none."""
        location = self._source.origin.location
        if not location.is_file():
            raise SourceError(f"takes a GGUF file, and {self._source.reference} is none")
        return location

    def checkpoint(self) -> Path:
        """The folder of a Hugging Face checkpoint in fp32, written if need be."""
        path = bench_folder("checkpoints") / self.key
        if not path.exists():
            from enginewright.builder.source.quiet import quiet_transformers

            with tempfile.TemporaryDirectory(dir=path.parent, prefix="making-") as scratch:
                made = Path(scratch) / "checkpoint"
                with quiet_transformers():
                    self._source.reference_model().save_pretrained(made)
                self._source.write_tokenizer(made)
                made.rename(path)
        return path

    @cached_property
    def _source(self) -> Source:
        """Raises SourceError if what lies there is not what the artifact was built from."""
        require("build", "torch", "transformers", "pydantic")
        from enginewright.builder.recipe import SourceSpec
        from enginewright.builder.source import open_source

        stated = self.artifact.manifest.recipe["source"]
        if self.stated is None and stated.keys() & {"path", "gguf"}:
            raise SourceError(
                f"{self.artifact.path}: built from {self.artifact.manifest.source.reference}; "
                f"say where that lies now: --source PATH"
            )
        spec = SourceSpec.at(self.stated.resolve()) if self.stated else SourceSpec(**stated)
        source = open_source(spec)
        if source.digest != self.digest:
            raise SourceError(
                f"{source.reference} has the digest {source.digest}, the artifact was built from "
                f"{self.digest}: give the same source with --source PATH"
            )
        return source
