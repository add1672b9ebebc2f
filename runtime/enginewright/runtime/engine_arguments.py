"""Arguments of vLLM's LLM (and some of transformers) that have nothing to set in a built engine.

Each is accepted at the values that ask for nothing; any other value is an error that says why.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from enginewright.runtime.errors import ArgumentError, EnginewrightError
from enginewright.runtime.sampling.checks import among
from enginewright.runtime.sampling.params import SamplingParams

_WEIGHTS = "the artifact holds the weights; a recipe's source says where they come from"
_PRECISION = "the precision is the recipe's: enginewright build ... --set precision=int4"
_ONE_DEVICE = "an engine runs on one device"
_TEXT_ONLY = "engines take text only"
_TOKENIZER = "the artifact holds the tokenizer that its engine was checked with"
_GENERATES = "engines generate text; they do not pool"
_LAYOUT = "the layout of the cache is fixed when the engine is built"
_NO_ADAPTERS = "a built engine has no adapters; merge them into the checkpoint before the build"
_DRAFTS = "speculative_config= says how tokens are drafted"
_IN_ORDER = "requests run in the order of arrival"
_CONFIG = "the model's config is fixed when the engine is built"
_COMPILED = "the engine is compiled by the build"

NEUTRAL: Mapping[str, tuple[tuple[Any, ...] | None, str]] = {
    "tokenizer_mode": (("auto", "hf", "slow"), _TOKENIZER),
    "tokenizer_revision": ((None,), _TOKENIZER),
    "skip_tokenizer_init": ((False,), "give prompt_token_ids, and detokenize=False in the params"),
    "convert": (("auto", "none"), _GENERATES),
    "pooler_config": ((None,), _GENERATES),
    "override_pooler_config": ((None,), _GENERATES),
    "code_revision": ((None,), _WEIGHTS),
    "download_dir": ((None,), _WEIGHTS),
    "load_format": (("auto", None), _WEIGHTS),
    "ignore_patterns": ((None,), _WEIGHTS),
    "model_loader_extra_config": ((None, {}), _WEIGHTS),
    "config_format": (("auto", None), _CONFIG),
    "hf_config_path": ((None,), _CONFIG),
    "hf_overrides": ((None, {}), _CONFIG),
    "rope_scaling": ((None, {}), _CONFIG),
    "rope_theta": ((None,), _CONFIG),
    "disable_sliding_window": ((False,), _CONFIG),
    "model_impl": (("auto", None), _COMPILED),
    "compilation_config": (None, _COMPILED),
    "enforce_eager": (None, _COMPILED),
    "quantization_config": ((None,), _PRECISION),
    "quantization_param_path": ((None,), _PRECISION),
    "load_in_4bit": ((False, None), _PRECISION),
    "load_in_8bit": ((False, None), _PRECISION),
    "calculate_kv_scales": ((False,), _LAYOUT),
    "kv_cache_dtype": (("auto",), _LAYOUT),
    "block_size": ((None, 16), _LAYOUT),
    "kv_transfer_config": ((None,), _LAYOUT),
    "device": ((None, "auto"), "target= chooses among the artifact's engines"),
    "device_map": ((None, "auto"), "target= chooses among the artifact's engines"),
    "tensor_parallel_size": ((1,), _ONE_DEVICE),
    "pipeline_parallel_size": ((1,), _ONE_DEVICE),
    "data_parallel_size": ((1,), _ONE_DEVICE),
    "decode_context_parallel_size": ((1,), _ONE_DEVICE),
    "enable_expert_parallel": ((False,), _ONE_DEVICE),
    "distributed_executor_backend": ((None, "uni", "mp"), _ONE_DEVICE),
    "worker_cls": (("auto",), _ONE_DEVICE),
    "disable_custom_all_reduce": (None, _ONE_DEVICE),
    "max_parallel_loading_workers": (None, _WEIGHTS),
    "use_tqdm_on_load": (None, _WEIGHTS),
    "cpu_offload_gb": ((0,), "kv_cache_memory_bytes= bounds the cache"),
    "swap_space": (None, "kv_cache_memory_bytes= bounds the cache"),
    "gpu_memory_utilization": (None, "kv_cache_memory_bytes= bounds the cache"),
    "max_seq_len_to_capture": (None, _COMPILED),
    "attention_backend": ((None,), _COMPILED),
    "trust_remote_code": (None, "code from a checkpoint never runs, here or in a build"),
    "hf_token": (None, "nothing is downloaded when an artifact is loaded"),
    "served_model_name": (None, "a server's names for the model change nothing here"),
    "enable_lora": ((False, None), _NO_ADAPTERS),
    "max_loras": (None, _NO_ADAPTERS),
    "max_lora_rank": (None, _NO_ADAPTERS),
    "spec_method": ((None,), _DRAFTS),
    "spec_model": ((None,), _DRAFTS),
    "spec_tokens": ((None,), _DRAFTS),
    "scheduling_policy": (("fcfs",), _IN_ORDER),
    "enable_chunked_prefill": ((None, True), "long prompts always run in chunks"),
    "async_scheduling": ((None, False), _IN_ORDER),
    "stream_interval": ((1,), "SamplingParams has it, for each request"),
    "logprobs_mode": (("raw_logprobs",), "log probabilities are those of the raw logits"),
    "structured_outputs_config": ((None, {}), "structured outputs have one backend"),
    "guided_decoding_backend": ((None, "auto"), "structured outputs have one backend"),
    "reasoning_parser": ((None, ""), "outputs are given as they come"),
    "enable_sleep_mode": ((False,), "close() frees an engine, and loading it takes a second"),
    "enable_prompt_embeds": ((False,), "prompts are text or token ids"),
    "limit_mm_per_prompt": ((None, {}), _TEXT_ONLY),
    "mm_processor_kwargs": ((None, {}), _TEXT_ONLY),
    "mm_processor_cache_gb": (None, _TEXT_ONLY),
    "language_model_only": (None, _TEXT_ONLY),
    "allowed_local_media_path": (("", None), _TEXT_ONLY),
    "allowed_media_domains": ((None, []), _TEXT_ONLY),
    "interleave_mm_strings": ((False,), _TEXT_ONLY),
    "additional_config": ((None, {}), "there is nothing that reads it"),
    "disable_log_stats": (None, "statistics are not logged"),
    "disable_log_requests": (None, "requests are not logged"),
}
"""Name -> the values that ask for nothing (None: any value, a hint with no use here), and why."""


def check_others(
    others: Mapping[str, Any], *, model: str | os.PathLike[str], known: Collection[str]
) -> None:
    """Refuse what ``others`` ask of an engine that was built without it.

    ``known``: the names of the arguments that do something, for what is to be proposed. ``task``
    is accepted as vLLM once spelt ``runner``.
    """
    for name, value in others.items():
        if name == "task":
            _check_task(value)
        elif name == "tokenizer":
            if value is not None and not _same_place(value, model):
                raise _unsupported(name, value, _TOKENIZER)
        elif name not in NEUTRAL:
            raise _unknown(name, [*known, *NEUTRAL])
        else:
            neutral, reason = NEUTRAL[name]
            if neutral is not None and not among(value, neutral):
                raise _unsupported(name, value, f"{reason}; legal is {_spelt(neutral)}")


def check_runner(runner: Any) -> None:
    """Engines generate; there is no other runner."""
    if not among(runner, ("auto", "generate")):
        raise _unsupported("runner", runner, f"{_GENERATES}; legal is 'auto' or 'generate'")


def _check_task(task: Any) -> None:
    if not among(task, ("auto", "generate")):
        raise _unsupported("task", task, f"{_GENERATES}; leave it out")
    warnings.warn(
        f"task={task!r} is now spelt runner={task!r}, and can be left out",
        DeprecationWarning,
        stacklevel=4,  # the caller of LLM
    )


def _same_place(one: Any, other: Any) -> bool:
    paths = isinstance(one, (str, os.PathLike)) and isinstance(other, (str, os.PathLike))
    return paths and os.fspath(one) == os.fspath(other)


def _spelt(values: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, values))


def _unsupported(name: str, value: Any, reason: str) -> EnginewrightError:
    return EnginewrightError(f"{name}={value!r:.200} is unsupported: {reason}")


def _unknown(name: str, legal: list[str]) -> ArgumentError:
    of_requests = {field.name for field in dataclasses.fields(SamplingParams)}
    near = difflib.get_close_matches(name, [*legal, *of_requests], n=1)
    hint = "docs/offline-inference.md lists them"
    if near:
        shown = near[0] if near[0] in legal else f"SamplingParams({near[0]}=...), for each request"
        hint = f"did you mean {shown}?"
    return ArgumentError(
        f"LLM has no argument {name!r}: it is none of ours, and none of vLLM's that a built "
        f"engine could heed; {hint}"
    )
