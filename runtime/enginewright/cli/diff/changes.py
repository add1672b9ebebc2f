"""What differs between two artifacts, from their manifests, tokenizers and templates alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.text.templates import CONFIG_FILE, GENERATION_FILE, TEMPLATE_FILE
from enginewright.runtime.text.tokenizer import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
_TEXTS = (TOKENIZER_FILE, CONFIG_FILE, TEMPLATE_FILE, GENERATION_FILE)
_TOLD_ELSEWHERE = ("fingerprint", "io", "files", "limits", "nvidia")
_OF_NVIDIA = ("library", "library_version", "capabilities", "later", "weights_bytes")

Facts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Change:
    """One fact that differs; None where an artifact does not have it."""

    section: str
    name: str
    a: Any
    b: Any


def changes(a: Artifact, b: Artifact) -> list[Change]:
    """Everything that differs, by section."""
    ours, theirs = facts(a), facts(b)
    return [
        Change(section, name, ours[section].get(name), theirs[section].get(name))
        for section in ours
        for name in sorted(ours[section].keys() | theirs[section].keys())
        if ours[section].get(name) != theirs[section].get(name)
    ]


def facts(artifact: Artifact) -> Facts:
    """What an artifact is, as plain values by section and name."""
    manifest = artifact.manifest
    hashes = {name: entry.sha256 for name, entry in manifest.files.items()}
    defaults = manifest.sampling_defaults.items()
    return {
        "source": asdict(manifest.source),
        "recipe": dict(_flat(manifest.recipe)),
        "limits": {
            f"{engine.plan}.{name}": value
            for engine in manifest.engines
            for name, value in asdict(engine.limits).items()
        },
        "engines": {
            f"{engine.plan}.{name}": value
            for engine in manifest.engines
            for name, value in _engine(engine).items()
        },
        "end tokens": _end_tokens(artifact),
        "sampling defaults": {name: default.value for name, default in defaults},
        "tokenizer and template": {name: hashes[name] for name in _TEXTS if name in hashes},
        "engine files": {n: digest for n, digest in hashes.items() if n.startswith("engine/")},
        "tools": manifest.tools,
    }


def _engine(engine: EngineEntry) -> dict[str, Any]:
    data = asdict(engine)
    told = {name: value for name, value in data.items() if name not in _TOLD_ELSEWHERE}
    if engine.nvidia is not None:
        told["nvidia"] = {name: data["nvidia"][name] for name in _OF_NVIDIA}
    return dict(_flat(told))


def _end_tokens(artifact: Artifact) -> dict[str, str]:
    tokenizer = Tokenizer.from_file(artifact.file(TOKENIZER_FILE))
    ids = artifact.manifest.eos_token_ids
    return {str(token): tokenizer.surface(token) or "no token" for token in ids}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
