"""What a caller may ask of an LLM besides prompts, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from enginewright.runtime.artifact.artifact import Artifact, Verify
from enginewright.runtime.artifact.manifest import EngineEntry, Manifest
from enginewright.runtime.cores import MOST_THREADS
from enginewright.runtime.engine import Engine, StepSupport
from enginewright.runtime.errors import EnginewrightError, RequestError
from enginewright.runtime.sampling.checks import INFINITY, among, maybe_whole
from enginewright.runtime.sampling.custom import LogitsProcessor
from enginewright.runtime.sampling.defaults import GenerationConfig
from enginewright.runtime.scheduling.core import EngineCore
from enginewright.runtime.scheduling.scheduler import LEAST_TOKENS_PER_STEP, MAX_TOKENS_PER_STEP
from enginewright.runtime.speculation.config import SpeculativeConfig
from enginewright.runtime.speculation.speculator import Speculator
from enginewright.runtime.text.templates import TemplateSource
from enginewright.runtime.trust.policy import Policy

T = TypeVar("T")

HIGHEST_SEED = 2**64 - 1
_STEP = MAX_TOKENS_PER_STEP
_DTYPES = {"float": "float32", "half": "float16"}
_whole = partial(maybe_whole, error=EnginewrightError)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which engine is run, and how; None leaves it to the artifact. See LLM for the meanings."""

    dtype: str = "auto"
    quantization: str | None = None
    revision: str | None = None
    target: str | None = None
    plan: str | None = None
    allow_native_code: bool | None = None
    verify: Verify = "cached"
    threads: int | None = None
    max_batch: int | None = None
    max_context: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_memory_bytes: int | None = None
    enable_prefix_caching: bool | None = None
    speculation: SpeculativeConfig | None = None
    policy: Policy | None = None

    def __post_init__(self) -> None:
        hints = {
            "threads": (1, MOST_THREADS, "None for all available cores"),
            "max_num_batched_tokens": (LEAST_TOKENS_PER_STEP, INFINITY, f"None for {_STEP}"),
            "kv_cache_memory_bytes": (1, INFINITY, "None for what the engine's limits may need"),
        }
        for name, (lowest, highest, hint) in hints.items():
            value = _whole(name, getattr(self, name), lowest, highest, otherwise=hint)
            object.__setattr__(self, name, value)
        for name in ("allow_native_code", "enable_prefix_caching"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise EnginewrightError(
                    f"{name}={value!r:.80} is not legal: it must be True, False or None"
                )
        if self.policy is not None:
            allowed = self.policy.native_rule(self.allow_native_code)
            object.__setattr__(self, "allow_native_code", allowed)
        for name in ("quantization", "revision", "target", "plan"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise EnginewrightError(f"{name}={value!r:.80} is not legal: it must be text")

    def check_built(self, manifest: Manifest, engine: EngineEntry) -> None:
        """Refuse an artifact, or the engine of it, that is not what was asked for."""
        again = "build another artifact for another one, or leave it out"
        revision = manifest.source.revision
        if self.revision not in (None, revision):
            raise EnginewrightError(
                f"revision={self.revision!r:.80}: this artifact was built from "
                f"{revision or 'a source without one'}; {again}"
            )
        if self.quantization not in (None, engine.precision):
            raise EnginewrightError(
                f"quantization={self.quantization!r:.80}: this artifact's precision is "
                f"{engine.precision}; {again} (enginewright build ... --set precision=...)"
            )
        dtype = str(self.dtype).removeprefix("torch.")
        if _DTYPES.get(dtype, dtype) not in ("auto", engine.kv.dtype):
            raise EnginewrightError(
                f"dtype={self.dtype!s:.80}: this engine computes in {engine.kv.dtype}, as it was "
                f"built; leave it at 'auto'. Weights have the recipe's precision "
                f"({engine.precision})"
            )

    def check_policy(self, artifact: Artifact) -> None:
        """Raise PolicyError for an artifact, a draft's as well, that may not be used here."""
        if self.policy is not None:
            self.policy.check(artifact, self.verify)

    def lowered(self, entry: EngineEntry) -> EngineEntry:
        """The entry with limits that were asked for and do not exceed those that were built."""
        limits = {}
        for name, lowest in (("max_batch", 1), ("max_context", 2)):
            built = getattr(entry.limits, name)
            hint = f"None for the engine's own limit of {built}; to have more, build the artifact "
            hint += f"again with a larger limits.{name}"
            found = _whole(name, getattr(self, name), lowest, built, otherwise=hint)
            limits[name] = built if found is None else found
        return dataclasses.replace(entry, limits=dataclasses.replace(entry.limits, **limits))

    def core(self, engine: Engine, speculator: Speculator | None = None) -> EngineCore:
        """What runs requests on the engine."""
        return EngineCore(
            engine,
            self.max_num_batched_tokens or _STEP,
            kv_cache_memory_bytes=self.kv_cache_memory_bytes,
            fixed_context=self.max_context is not None,
            enable_prefix_caching=self.enable_prefix_caching is not False,
            speculator=speculator,
        )


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What holds for all requests of an LLM, see there."""

    seed: int | None = None
    max_logprobs: int | None = None
    chat_template: TemplateSource | None = None
    generation_config: GenerationConfig = "auto"
    override_generation_config: Mapping[str, Any] | None = None
    logits_processors: Sequence[LogitsProcessor | str] | None = None

    def __post_init__(self) -> None:
        seed = _whole("seed", self.seed, 0, HIGHEST_SEED, otherwise="None for fresh entropy")
        most = _whole("max_logprobs", self.max_logprobs, -1, otherwise="None or -1 for no limit")
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "max_logprobs", None if most == -1 else most)


def check_path(model: Any) -> str | os.PathLike[str]:
    """What names an artifact, if it can be a path or a name."""
    if not isinstance(model, (str, os.PathLike)) or not os.fspath(model):
        raise EnginewrightError(
            f"model={model!r:.80} is not legal: it must be the path of an artifact's folder, or of "
            f"the checkpoint or GGUF file, or the hub's name of the model, that one was built from"
        )
    return model


def one_of_two(ours: str, value: T | None, theirs: str, alias: T | None) -> T | None:
    """The value of an argument that has two names."""
    if value is None or alias is None or among(value, (alias,)):
        return alias if value is None else value
    raise EnginewrightError(
        f"{ours}={value!r:.80} and {theirs}={alias!r:.80} are two names for the same: give one"
    )


def check_chunk(chunk: Any, length: int, steps: StepSupport) -> int:
    """Tokens a step of ``length`` of them; None: as many as a prompt's."""
    hint = "None for as many as a prompt's steps"
    found = maybe_whole("chunk", chunk, 1, otherwise=hint, error=RequestError)
    if not steps.extend and (found is None or found > 1):
        if found is not None and found < length:
            raise RequestError(f"chunk={found}: this engine only runs chunks of 1, or all")
        return length
    return min(found or _STEP, steps.tokens or length)
