"""What each model family needs beyond the generic route: one row here, a small file if needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from enginewright.runtime.errors import UnsupportedModelError


def _nothing(module: nn.Module) -> None:
    """The generic route fits."""


@dataclass(frozen=True)
class Family:
    """One architecture that can be built. ``prepare`` adapts the module before it is traced."""

    architecture: str
    prepare: Callable[[nn.Module], None] = _nothing


_ROWS = (
    Family("LlamaForCausalLM"),
    Family("MistralForCausalLM"),
    Family("Qwen2ForCausalLM"),
    Family("Qwen3ForCausalLM"),
    Family("Gemma2ForCausalLM"),
    Family("Gemma3ForCausalLM"),
    Family("Phi3ForCausalLM"),
    Family("GPT2LMHeadModel"),
    Family("GPTNeoXForCausalLM"),
    Family("OPTForCausalLM"),
    Family("Olmo2ForCausalLM"),
    Family("GraniteForCausalLM"),
    Family("SmolLM3ForCausalLM"),
)
FAMILIES = {row.architecture: row for row in _ROWS}


def family_of(architecture: str) -> Family:
    """The row of an architecture; raises UnsupportedModelError with the list of those known."""
    if architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"architecture {architecture!r} cannot be built: it has not been shown to agree with "
            f"Hugging Face. Supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[architecture]
