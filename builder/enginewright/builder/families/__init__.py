"""What each model family needs beyond the generic route: one row here, a small file if needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from enginewright.runtime.errors import SourceError, UnsupportedModelError


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
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
FAMILIES = {row.architecture: row for row in _ROWS}


def check_config(architecture: str, config: PreTrainedConfig) -> None:
    """Refuse what a family can be configured to and has not been shown to agree in.

    Raises UnsupportedModelError, or SourceError for what no model can be configured to; both name
    the field and its value.
    """
    expected = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if expected != architecture:
        raise UnsupportedModelError(
            f"config: architectures says {architecture!r}, model_type {config.model_type!r} is "
            f"{expected!r}; they have to agree"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    for rope_type in _values_of("rope_type", rope):
        if rope_type not in _ROPE_TYPES:
            raise UnsupportedModelError(
                f"config: rope_type {rope_type!r} cannot be built; supported: "
                f"{', '.join(_ROPE_TYPES)}"
            )
    for theta in _values_of("rope_theta", rope):
        if not isinstance(theta, (int, float)) or not theta > 0:
            raise SourceError(
                f"config: rope_theta {theta!r:.80} is not legal: it must be a number above 0"
            )
    padding = getattr(config, "pad_token_id", None)
    if padding is not None and not -config.vocab_size <= padding < config.vocab_size:
        raise SourceError(
            f"config: pad_token_id {padding} is outside the vocabulary of {config.vocab_size} "
            f"tokens; correct it, or set it to null"
        )
    activation = getattr(config, "hidden_act", None)
    if activation is not None and activation not in ACT2FN:
        raise UnsupportedModelError(f"config: hidden_act {activation!r} is unknown to transformers")
    if config.model_type == "gemma3_text" and getattr(config, "use_bidirectional_attention", None):
        raise UnsupportedModelError(
            "config: use_bidirectional_attention cannot be built: engines attend causally"
        )


def _values_of(key: str, parameters: Mapping[str, Any]) -> Iterator[Any]:
    """Of the whole model, or of each kind of its layers."""
    for name, value in parameters.items():
        if name == key:
            yield value
        elif isinstance(value, Mapping):
            yield from _values_of(key, value)


def family_of(architecture: str) -> Family:
    """The row of an architecture; raises UnsupportedModelError with the list of those known."""
    if architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"architecture {architecture!r} cannot be built: it has not been shown to agree with "
            f"Hugging Face. Supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[architecture]
