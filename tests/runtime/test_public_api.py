"""The names that users import, pinned; and that importing them lazily works."""

from __future__ import annotations

import inspect

import pytest

import enginewright.runtime
from enginewright.runtime import errors

PUBLIC = {
    "LLM",
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CompletionOutput",
    "EffectiveParameter",
    "EngineStats",
    "Explanation",
    "FlatLogprobs",
    "Logprob",
    "Policy",
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

CALL = "use_tqdm, lora_request, priority"
TEMPLATE = (
    "chat_template, chat_template_content_format, add_generation_prompt, continue_final_message, "
    "tools, chat_template_kwargs"
)
METHODS = {
    "batch_logits": "(self, sequences)",
    "beam_search": "(self, prompts, params, lora_request, use_tqdm, concurrency_limit, priority)",
    "chat": f"(self, messages, sampling_params, {CALL}, {TEMPLATE}, tokenization_kwargs, "
    "mm_processor_kwargs)",
    "close": "(self)",
    "enqueue": "(self, prompts, sampling_params, **call)",
    "enqueue_chat": f"(self, messages, sampling_params, *, {CALL}, tokenization_kwargs, "
    "**template)",
    "explain": "(self, params)",
    "generate": f"(self, prompts, sampling_params, *, {CALL}, tokenization_kwargs, "
    "mm_processor_kwargs)",
    "get_default_sampling_params": "(self)",
    "get_tokenizer": "(self)",
    "hand_over": "(self, owner)",
    "logits": "(self, token_ids, *, chunk)",
    "reset_prefix_cache": "(self)",
    "stream": "(self, prompt, sampling_params)",
    "stream_chat": "(self, messages, sampling_params, **template)",
    "wait_for_completion": "(self, *, use_tqdm)",
}
ASYNC_METHODS = {
    "abort": "(self, request_id)",
    "beam_search": "(self, prompt, params, request_id)",
    "chat": "(self, messages, sampling_params, request_id, *, lora_request, priority, "
    "tokenization_kwargs, **template)",
    "explain": "(self, params)",
    "generate": "(self, prompt, sampling_params, request_id, *, lora_request, priority, "
    "tokenization_kwargs)",
    "get_default_sampling_params": "(self)",
    "get_tokenizer": "(self)",
    "reset_prefix_cache": "(self)",
    "shutdown": "(self)",
    "stats": "(self)",
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


@pytest.mark.parametrize(
    ("kind", "methods"),
    [(enginewright.runtime.LLM, METHODS), (enginewright.runtime.AsyncLLM, ASYNC_METHODS)],
)
def test_the_methods_are_these(kind: type, methods: dict[str, str]) -> None:
    functions = inspect.getmembers(kind, inspect.isfunction)
    found = {name: _parameters(each) for name, each in functions if not name.startswith("_")}
    assert found == methods


def test_the_arguments_of_the_constructors_are_these() -> None:
    assert _parameters(enginewright.runtime.LLM.__init__) == (
        "(self, model, *, runner, dtype, quantization, revision, target, plan, allow_native_code, "
        "policy, verify, threads, max_batch, max_num_seqs, max_context, max_model_len, "
        "max_num_batched_tokens, kv_cache_memory_bytes, enable_prefix_caching, max_logprobs, seed, "
        "chat_template, generation_config, override_generation_config, logits_processors, "
        "speculative_config, **others)"
    )
    assert _parameters(enginewright.runtime.AsyncLLM.__init__) == (
        "(self, model, *, max_requests, **options)"
    )


def _parameters(function: object) -> str:
    """A signature's names without types and defaults."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    plain = [
        parameter.replace(annotation=parameter.empty, default=parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(plain))
