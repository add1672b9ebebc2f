"""The names that users import, pinned; and that importing them lazily works."""

from __future__ import annotations

import inspect

import pytest

import enginewright.runtime
from enginewright.runtime import errors

PUBLIC = {
    "LLM",
    "CompletionOutput",
    "Logprob",
    "RepetitionDetectionParams",
    "RequestMetrics",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "SamplingType",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "load_chat_template",
}

METHODS = {
    "batch_logits": "(self, sequences)",
    "chat": "(self, messages, sampling_params, *, use_tqdm, chat_template, "
    "chat_template_content_format, add_generation_prompt, continue_final_message, tools, "
    "chat_template_kwargs)",
    "close": "(self)",
    "generate": "(self, prompts, sampling_params, *, use_tqdm)",
    "get_default_sampling_params": "(self)",
    "get_tokenizer": "(self)",
    "logits": "(self, token_ids, *, chunk)",
    "stream": "(self, prompt, sampling_params)",
    "stream_chat": "(self, messages, sampling_params, *, chat_template, "
    "chat_template_content_format, add_generation_prompt, continue_final_message, tools, "
    "chat_template_kwargs)",
}


def test_the_public_names_are_these() -> None:
    raised = {name for name in vars(errors) if name.endswith("Error")}
    assert set(enginewright.runtime.__all__) == PUBLIC | raised
    assert dir(enginewright.runtime) == sorted(enginewright.runtime.__all__)


@pytest.mark.parametrize("name", enginewright.runtime.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(enginewright.runtime, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Llm'"):
        _ = enginewright.runtime.Llm
    with pytest.raises(ImportError, match="Llm"):
        from enginewright.runtime import Llm  # noqa: F401


def test_every_error_has_the_one_base() -> None:
    raised = [getattr(errors, name) for name in vars(errors) if name.endswith("Error")]
    assert all(issubclass(error, errors.EnginewrightError) for error in raised)
    assert issubclass(errors.RequestError, ValueError)


def test_the_methods_of_llm_are_these() -> None:
    llm = enginewright.runtime.LLM
    functions = inspect.getmembers(llm, inspect.isfunction)
    found = {name: _parameters(each) for name, each in functions if not name.startswith("_")}
    assert found == METHODS
    assert _parameters(llm.__init__) == (
        "(self, model, *, target, threads, seed, max_batch, max_context, verify, "
        "chat_template, generation_config, plan, allow_native_code)"
    )


def _parameters(function: object) -> str:
    """A signature's names without types and defaults."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    plain = [
        parameter.replace(annotation=parameter.empty, default=parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(plain))
