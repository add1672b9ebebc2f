"""The runtime: loads an artifact and generates text. No torch, no transformers, no onnx.

The names below are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginewright.runtime.errors import (
        ArtifactError,
        ArtifactNotFoundError,
        BuildError,
        ChatTemplateError,
        ConformanceError,
        ContextLengthError,
        EnginewrightError,
        IntegrityError,
        MissingDependencyError,
        PromptError,
        RecipeError,
        RequestError,
        SamplingParamsError,
        SchemaVersionError,
        SourceError,
        TargetError,
        UnsupportedModelError,
    )
    from enginewright.runtime.llm import LLM
    from enginewright.runtime.outputs import (
        CompletionOutput,
        Logprob,
        RequestMetrics,
        RequestOutput,
    )
    from enginewright.runtime.prompts import TextPrompt, TokensPrompt
    from enginewright.runtime.sampling.params import SamplingParams

__all__ = [
    "LLM",
    "ArtifactError",
    "ArtifactNotFoundError",
    "BuildError",
    "ChatTemplateError",
    "CompletionOutput",
    "ConformanceError",
    "ContextLengthError",
    "EnginewrightError",
    "IntegrityError",
    "Logprob",
    "MissingDependencyError",
    "PromptError",
    "RecipeError",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "SamplingParamsError",
    "SchemaVersionError",
    "SourceError",
    "TargetError",
    "TextPrompt",
    "TokensPrompt",
    "UnsupportedModelError",
]

_HOME = {
    "LLM": "llm",
    "SamplingParams": "sampling.params",
    "TextPrompt": "prompts",
    "TokensPrompt": "prompts",
    **dict.fromkeys(("CompletionOutput", "Logprob", "RequestMetrics", "RequestOutput"), "outputs"),
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
