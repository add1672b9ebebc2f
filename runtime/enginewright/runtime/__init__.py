"""The runtime: loads an artifact and generates text. No torch, no transformers, no onnx.

The names below are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginewright.runtime.async_llm import AsyncLLM
    from enginewright.runtime.beam_search.outputs import BeamSearchOutput, BeamSearchSequence
    from enginewright.runtime.beam_search.params import BeamSearchParams
    from enginewright.runtime.errors import (
        ArgumentError,
        ArtifactError,
        ArtifactNotFoundError,
        BuildError,
        ChatTemplateError,
        ConformanceError,
        ContextLengthError,
        DeviceError,
        EnginewrightError,
        IntegrityError,
        MissingDependencyError,
        NativeCodeError,
        NotInRegistryError,
        OverloadedError,
        PolicyError,
        PromptError,
        RecipeError,
        RegistryError,
        RequestError,
        SamplingParamsError,
        SchemaVersionError,
        SettingsError,
        SignatureError,
        SourceError,
        TargetError,
        UnsupportedModelError,
    )
    from enginewright.runtime.explain import EffectiveParameter, Explanation
    from enginewright.runtime.llm import LLM
    from enginewright.runtime.requests.flat_logprobs import FlatLogprobs
    from enginewright.runtime.requests.outputs import (
        CompletionOutput,
        Logprob,
        RequestMetrics,
        RequestOutput,
    )
    from enginewright.runtime.requests.prompts import TextPrompt, TokensPrompt
    from enginewright.runtime.sampling.kinds import RequestOutputKind, SamplingType
    from enginewright.runtime.sampling.params import SamplingParams
    from enginewright.runtime.sampling.repetition import RepetitionDetectionParams
    from enginewright.runtime.sampling.structured import StructuredOutputsParams
    from enginewright.runtime.stats import EngineStats
    from enginewright.runtime.text.templates import load_chat_template
    from enginewright.runtime.trust.policy import Policy

__all__ = [
    "LLM",
    "ArgumentError",
    "ArtifactError",
    "ArtifactNotFoundError",
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "BuildError",
    "ChatTemplateError",
    "CompletionOutput",
    "ConformanceError",
    "ContextLengthError",
    "DeviceError",
    "EffectiveParameter",
    "EngineStats",
    "EnginewrightError",
    "Explanation",
    "FlatLogprobs",
    "IntegrityError",
    "Logprob",
    "MissingDependencyError",
    "NativeCodeError",
    "NotInRegistryError",
    "OverloadedError",
    "Policy",
    "PolicyError",
    "PromptError",
    "RecipeError",
    "RegistryError",
    "RepetitionDetectionParams",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "SamplingParamsError",
    "SamplingType",
    "SchemaVersionError",
    "SettingsError",
    "SignatureError",
    "SourceError",
    "StructuredOutputsParams",
    "TargetError",
    "TextPrompt",
    "TokensPrompt",
    "UnsupportedModelError",
    "load_chat_template",
]

_HOME = {
    "AsyncLLM": "async_llm",
    "BeamSearchOutput": "beam_search.outputs",
    "BeamSearchParams": "beam_search.params",
    "BeamSearchSequence": "beam_search.outputs",
    "CompletionOutput": "requests.outputs",
    "EffectiveParameter": "explain",
    "EngineStats": "stats",
    "Explanation": "explain",
    "FlatLogprobs": "requests.flat_logprobs",
    "LLM": "llm",
    "Logprob": "requests.outputs",
    "Policy": "trust.policy",
    "RepetitionDetectionParams": "sampling.repetition",
    "RequestMetrics": "requests.outputs",
    "RequestOutput": "requests.outputs",
    "RequestOutputKind": "sampling.kinds",
    "SamplingParams": "sampling.params",
    "SamplingType": "sampling.kinds",
    "StructuredOutputsParams": "sampling.structured",
    "TextPrompt": "requests.prompts",
    "TokensPrompt": "requests.prompts",
    "load_chat_template": "text.templates",
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "errors"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return __all__
