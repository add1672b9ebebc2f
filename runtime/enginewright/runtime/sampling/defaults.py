"""The sampling parameters of a request that gives none: the model's own over vLLM's defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias

from enginewright.runtime.artifact.manifest import Manifest, SamplingDefault
from enginewright.runtime.errors import ArtifactError, EnginewrightError, SamplingParamsError
from enginewright.runtime.sampling.params import SamplingParams

GenerationConfig: TypeAlias = Literal["auto", "vllm"] | str | os.PathLike[str]
CONFIG_FILE = "generation_config.json"
OVERRIDE = "override_generation_config"

# Keys of a model's generation config that become defaults, and the field that each one sets.
_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "max_tokens": "max_tokens",
}


@dataclass(frozen=True)
class Defaults:
    """What a call without ``sampling_params`` uses.

    ``origins``: where the fields come from that a config or an argument set. ``eos_token_ids``:
    those that end an output besides the artifact's own.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    origins: Mapping[str, str] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()


def choose_defaults(
    manifest: Manifest,
    generation_config: GenerationConfig = "auto",
    override: Mapping[str, Any] | None = None,
) -> Defaults:
    """Of the model ("auto"), neutral ("vllm"), or of another folder's generation_config.json.

    ``override`` goes over them; a value of None takes the model's away.
    """
    config: Mapping[str, SamplingDefault]
    eos: tuple[int, ...] = ()
    if generation_config == "auto":
        config = manifest.sampling_defaults
    elif generation_config == "vllm":
        config = {}
    else:
        config, eos = _read(generation_config, manifest)
    fields = {_FIELDS[key]: default for key, default in _known(config).items()}
    resolve_defaults(fields)  # the model's mistakes are told apart from those of the override
    changes = _overridden(override)
    fields = {name: default for name, default in fields.items() if name not in changes}
    kept = {name: default for name, default in changes.items() if default is not None}
    try:
        params = resolve_defaults(fields | kept)
    except ArtifactError as error:
        raise EnginewrightError(f"{OVERRIDE}={override!r:.200}: {error.__cause__}") from error
    return Defaults(params, {name: each.origin for name, each in (fields | kept).items()}, eos)


def resolve_defaults(defaults: Mapping[str, SamplingDefault]) -> SamplingParams:
    """The parameters; a value that sampling does not allow raises ArtifactError with its origin."""
    fields: dict[str, Any] = {}
    for key, default in _known(defaults).items():
        try:
            SamplingParams(**fields | {_FIELDS[key]: default.value})
        except SamplingParamsError as error:
            raise ArtifactError(
                f"the model's sampling default from {default.origin} cannot be used: {error}; "
                f"give sampling_params, or rebuild the artifact from a corrected file"
            ) from error
        fields[_FIELDS[key]] = default.value
    return SamplingParams(**fields)


def _known(defaults: Mapping[str, SamplingDefault]) -> Mapping[str, SamplingDefault]:
    for key, default in defaults.items():
        if key not in _FIELDS:
            raise ArtifactError(
                f"the manifest has a sampling default {key}={default.value!r} "
                f"(from {default.origin}); known are {', '.join(_FIELDS)}"
            )
    return defaults


def _overridden(override: Any) -> dict[str, SamplingDefault | None]:
    """The fields that the argument sets, or with None takes back."""
    if override is None:
        return {}
    known = ", ".join(_FIELDS)
    if not isinstance(override, Mapping):
        raise EnginewrightError(
            f"{OVERRIDE}={override!r:.200} is not legal: it must be a dict with some of {known}"
        )
    for key in override:
        if key not in _FIELDS:
            raise EnginewrightError(
                f"{OVERRIDE} has the key {key!r:.80}, which is no default of sampling here: legal "
                f"are {known}"
            )
    return {
        _FIELDS[key]: None if value is None else SamplingDefault(value, OVERRIDE)
        for key, value in override.items()
    }


def _read(folder: Any, manifest: Manifest) -> tuple[dict[str, SamplingDefault], tuple[int, ...]]:
    """The defaults and the end tokens of a folder's generation_config.json."""
    legal = (
        f"generation_config={folder!r:.80}: legal are 'auto' (the model's own sampling defaults), "
        f"'vllm' (neutral ones), or a folder with a {CONFIG_FILE}"
    )
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise EnginewrightError(legal)
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise EnginewrightError(f"{legal}; {path} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise EnginewrightError(f"{legal}; {path} is not a JSON object")
    found = {
        key: SamplingDefault(config[key], f"{path}: {key}")
        for key in _FIELDS
        if config.get(key) is not None
    }
    return found, _eos_ids(config.get("eos_token_id"), path, manifest.engines[0].vocab_size)


def _eos_ids(stated: Any, path: Path, vocab_size: int) -> tuple[int, ...]:
    if stated is None:
        return ()
    ids = stated if isinstance(stated, list) else [stated]
    for token in ids:
        whole = isinstance(token, Integral) and not isinstance(token, bool)
        if not whole or not 0 <= token < vocab_size:
            raise EnginewrightError(
                f"{path}: eos_token_id {token!r:.80} is not legal: it must be an id of this "
                f"model's vocabulary, 0 to {vocab_size - 1}, or a list of such"
            )
    return tuple(ids)
