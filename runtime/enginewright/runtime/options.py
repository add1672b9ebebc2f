"""What a caller may ask of an LLM besides prompts, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import numbers
import os
from typing import Any, Literal, get_args

from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.manifest import EngineEntry, Manifest
from enginewright.runtime.sampling.defaults import resolve_defaults
from enginewright.runtime.sampling.params import SamplingParams

GenerationConfig = Literal["auto", "vllm"]
HIGHEST_SEED = 2**64 - 1
MOST_THREADS = 256


def check_path(model: Any) -> str | os.PathLike[str]:
    """The artifact's path, if it is one."""
    if not isinstance(model, (str, os.PathLike)) or not os.fspath(model):
        raise EnginewrightError(
            f"model={model!r:.80} is not legal: it must be the path of an artifact's folder"
        )
    return model


def check_threads(threads: Any) -> int | None:
    """None leaves the number to the backend."""
    return whole("threads", threads, 1, MOST_THREADS, otherwise="None for all available cores")


def check_seed(seed: Any) -> int | None:
    """None takes fresh entropy."""
    return whole("seed", seed, 0, HIGHEST_SEED, otherwise="None for fresh entropy")


def lower_limits(entry: EngineEntry, max_batch: Any, max_context: Any) -> EngineEntry:
    """The entry with limits that were asked for and do not exceed those that were built."""
    asked = {"max_batch": (max_batch, 1), "max_context": (max_context, 2)}
    lowered = {}
    for name, (value, lowest) in asked.items():
        built = getattr(entry.limits, name)
        hint = f"None for the engine's own limit of {built}; to have more, build the artifact "
        hint += f"again with a larger limits.{name}"
        found = whole(name, value, lowest, built, otherwise=hint)
        lowered[name] = built if found is None else found
    return dataclasses.replace(entry, limits=dataclasses.replace(entry.limits, **lowered))


def default_params(manifest: Manifest, generation_config: Any) -> SamplingParams:
    """What a call without ``sampling_params`` uses."""
    if generation_config not in get_args(GenerationConfig):
        raise EnginewrightError(
            f"generation_config={generation_config!r}: legal are 'auto' (the model's own sampling "
            f"defaults) and 'vllm' (neutral ones)"
        )
    return resolve_defaults(manifest.sampling_defaults if generation_config == "auto" else {})


def whole(
    name: str,
    value: Any,
    lowest: int,
    highest: int | None = None,
    *,
    otherwise: str,
    error: type[EnginewrightError] = EnginewrightError,
) -> int | None:
    """The value as an int within its bounds, or None; ``otherwise`` says what None does."""
    if value is None:
        return None
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if integral and lowest <= value and (highest is None or value <= highest):
        return int(value)
    legal = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
    raise error(f"{name}={value!r:.80} is not legal: it must be an integer {legal}, or {otherwise}")
