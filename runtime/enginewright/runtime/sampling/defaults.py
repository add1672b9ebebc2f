"""The sampling parameters of a request that gives none: the model's own over vLLM's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginewright.runtime.errors import ArtifactError, SamplingParamsError
from enginewright.runtime.manifest import SamplingDefault
from enginewright.runtime.sampling.params import SamplingParams

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


def resolve_defaults(defaults: Mapping[str, SamplingDefault]) -> SamplingParams:
    """The parameters; a value that sampling does not allow raises ArtifactError with its origin."""
    fields: dict[str, Any] = {}
    for key, default in defaults.items():
        if key not in _FIELDS:
            raise ArtifactError(
                f"the manifest has a sampling default {key}={default.value!r} "
                f"(from {default.origin}); known are {', '.join(_FIELDS)}"
            )
        try:
            SamplingParams(**fields | {_FIELDS[key]: default.value})
        except SamplingParamsError as error:
            raise ArtifactError(
                f"the model's sampling default from {default.origin} cannot be used: {error}; "
                f"give sampling_params, or rebuild the artifact from a corrected file"
            ) from error
        fields[_FIELDS[key]] = default.value
    return SamplingParams(**fields)
