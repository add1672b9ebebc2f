"""What a build writes beside the engines: lock and manifest, each from what the stages made."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginewright.builder.lock import EngineRow, Lock, machine
from enginewright.builder.publish import hash_files
from enginewright.builder.source import Source
from enginewright.builder.stage_inputs import code_of_folder, tool_versions
from enginewright.builder.subject import Subject
from enginewright.runtime.artifact.manifest import (
    MANIFEST_NAME,
    EngineEntry,
    Manifest,
    SamplingDefault,
    SourceEntry,
    TuningEntry,
)

_PYTHON = {"python": platform.python_version()}
_SAMPLING_KEYS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


@dataclass(frozen=True)
class Made:
    """What of a build goes into lock and manifest; engines in the order of preference."""

    subject: Subject
    engines: tuple[EngineEntry, ...] = ()
    conformance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tuning: TuningEntry | None = None
    joined_tools: Mapping[str, str] | None = None
    """Of a set: those of its variants together."""

    @property
    def tools(self) -> dict[str, str]:
        """Versions of everything that had a part in it."""
        if self.joined_tools is not None:
            return dict(self.joined_tools)
        own = self.subject.target.tools(self.engines) if self.engines else {}
        return _PYTHON | tool_versions() | _sources() | dict(own)

    def lock(self) -> Lock:
        """As it stands now."""
        return Lock(
            recipe=self.subject.recipe.as_dict(),
            source_digest=self.subject.source.digest,
            tools=self.tools,
            machine=machine(),
            engines=tuple(map(EngineRow.model_validate, self.engines)),
            tuning=self.tuning,
        )

    def write(self, folder: Path) -> Manifest:
        """Lock and manifest into the artifact's folder, over those of an earlier step."""
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        self.lock().write(folder)
        manifest = self._manifest(folder)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        return manifest

    def _manifest(self, folder: Path) -> Manifest:
        recipe, source = self.subject.recipe, self.subject.source
        return Manifest(
            name=recipe.name,
            source=SourceEntry(
                source.kind, source.reference, source.digest, source.architecture, source.revision
            ),
            recipe=recipe.as_dict(),
            engines=self.engines,
            files=hash_files(folder),
            tools=self.tools,
            eos_token_ids=tuple(sorted(source.eos_token_ids)),
            bos_token_id=source.bos_token_id,
            sampling_defaults=_sampling_defaults(source),
            conformance=self.conformance,
            tuning=self.tuning,
        )


def _sources() -> dict[str, str]:
    """Digests of our own code: one version number has many."""
    return code_of_folder("enginewright.builder") | code_of_folder("enginewright.plugins")


def _sampling_defaults(source: Source) -> dict[str, SamplingDefault]:
    given = source.generation_config
    return {
        ours: SamplingDefault(given[theirs], f"generation_config.json: {theirs}")
        for theirs, ours in _SAMPLING_KEYS.items()
        if given.get(theirs) is not None
    }
