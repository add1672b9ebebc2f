"""Sampling parameters: defaults, normalisation, refusals that name field, value and range."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest

from enginewright.runtime.artifact.manifest import SamplingDefault
from enginewright.runtime.errors import ArtifactError, SamplingParamsError
from enginewright.runtime.sampling.defaults import resolve_defaults
from enginewright.runtime.sampling.kinds import RequestOutputKind, SamplingType
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.repetition import RepetitionDetectionParams
from enginewright.runtime.sampling.structured import StructuredOutputsParams


def test_defaults_are_those_of_vllm() -> None:
    params = SamplingParams()
    assert dataclasses.asdict(params) == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": None,
        "n": 1,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "max_tokens": 16,
        "min_tokens": 0,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "include_stop_str_in_output": False,
        "detokenize": True,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "allowed_token_ids": None,
        "bad_words": (),
        "logits_processors": (),
        "processor_order": "vllm",
        "repetition_detection": None,
        "structured_outputs": None,
        "logprobs": None,
        "prompt_logprobs": None,
        "prompt_logprob_token_ids": None,
        "prompt_logprob_start": None,
        "logprob_token_ids": None,
        "flat_logprobs": False,
        "output_kind": RequestOutputKind.CUMULATIVE,
        "stream_interval": None,
        "skip_clone": False,
        "skip_reading_prefix_cache": None,
        "watermarking": None,
        "thinking_token_budget": None,
        "extra_args": None,
        "routed_experts_prompt_start": 0,
        "trace_decode_token_ids": None,
    }
    assert not params.greedy


UNSUPPORTED: list[tuple[str, Any]] = [
    ("watermarking", True),
    ("spaces_between_special_tokens", False),
    ("extra_args", {"a": 1}),
    ("thinking_token_budget", 0),
    ("thinking_token_budget", 100),
    ("routed_experts_prompt_start", 5),
    ("trace_decode_token_ids", [1, 2]),
]


@pytest.mark.parametrize(("field", "value"), UNSUPPORTED)
def test_what_is_unsupported_says_so(field: str, value: Any) -> None:
    with pytest.raises(SamplingParamsError, match=rf"{field}=.* is unsupported \(.*leave it at"):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("watermarking", False),
        ("extra_args", {}),
        ("thinking_token_budget", -1),
        ("routed_experts_prompt_start", 0),
    ],
)
def test_neutral_values_are_accepted(field: str, value: Any) -> None:
    SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("bias", "legal"),
    [(float("inf"), "finite"), (float("nan"), "finite"), (1e31, "1e+30"), ("1", "finite")],
)
def test_biases_are_numbers(bias: Any, legal: str) -> None:
    with pytest.raises(SamplingParamsError, match=r"logit_bias\[7\]=") as caught:
        SamplingParams(logit_bias={7: bias})
    assert legal in str(caught.value)


def test_more_than_one_output_cannot_be_greedy() -> None:
    with pytest.raises(SamplingParamsError, match=r"n=2 is not legal.*1 when sampling is greedy"):
        SamplingParams(n=2, temperature=0)
    assert SamplingParams(n=2).n == 2


def test_named_logprobs_and_their_number_must_agree() -> None:
    assert SamplingParams(logprob_token_ids=[4, 5], logprobs=2).num_logprobs == 2
    assert SamplingParams(logprob_token_ids=[4, 5]).num_logprobs == 2
    assert SamplingParams(logprobs=3).num_logprobs == 3
    assert SamplingParams().num_logprobs is None
    with pytest.raises(SamplingParamsError, match=r"logprobs=3 .* None or 2"):
        SamplingParams(logprob_token_ids=[4, 5], logprobs=3)


@pytest.mark.parametrize(
    "field",
    [
        "stop_token_ids",
        "allowed_token_ids",
        "logprob_token_ids",
        "prompt_logprob_token_ids",
        "logit_bias",
    ],
)
def test_ids_outside_the_vocabulary_are_refused(field: str) -> None:
    value: Any = {5: 1.0, 100: 1.0} if field == "logit_bias" else [5, 100]
    params = SamplingParams(**{field: value})
    params.check_vocabulary(101)
    with pytest.raises(SamplingParamsError, match=rf"{field}=\[100\].*0 to 99"):
        params.check_vocabulary(100)


def test_from_optional_takes_none_for_defaults() -> None:
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    nothing: dict[str, Any] = dict.fromkeys(names)
    assert SamplingParams.from_optional(**nothing) == SamplingParams(max_tokens=None)
    assert SamplingParams.from_optional(n=2, temperature=0.5) == SamplingParams(
        n=2, temperature=0.5
    )
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams.from_optional(temprature=0.5)


def test_from_optional_cuts_biases_and_reads_keys() -> None:
    params = SamplingParams.from_optional(logit_bias={"3": 250, 4: -250.0, "5": 1.5})
    assert params.logit_bias == {3: 100.0, 4: -100.0, 5: 1.5}
    with pytest.raises(SamplingParamsError, match=r"logit_bias has the keys \['a', None\]"):
        SamplingParams.from_optional(logit_bias={"a": 1, "3": 1, None: 1})
    with pytest.raises(SamplingParamsError, match=r"logit_bias=\[3\]"):
        SamplingParams.from_optional(logit_bias=[3])  # type: ignore[arg-type]


def test_clones_are_deep_unless_told() -> None:
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 9.0
    assert params.logit_bias == {1: 2.0}, "the caller's dict was taken over"
    clone = params.clone()
    assert clone == params
    assert clone.logit_bias is not params.logit_bias
    shallow = SamplingParams(logit_bias=bias, skip_clone=True)
    assert shallow.clone().logit_bias is shallow.logit_bias


def test_the_sampling_type_says_whether_draws_repeat() -> None:
    assert SamplingParams(temperature=0, seed=3).sampling_type is SamplingType.GREEDY
    assert SamplingParams().sampling_type is SamplingType.RANDOM
    assert SamplingParams(seed=3).sampling_type is SamplingType.RANDOM_SEED
    assert SamplingParams(seed=-1).sampling_type is SamplingType.RANDOM


def test_what_was_checked_can_be_checked_again() -> None:
    params = SamplingParams(
        stop="x", bad_words=["a", "a"], logprob_token_ids=[1, 2], prompt_logprobs=True, n=3
    )
    assert dataclasses.replace(params) == params
    assert params.bad_words == ("a",)
    assert params.prompt_logprobs == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_pattern_size": -1}, "max_pattern_size=-1"),
        ({"max_pattern_size": 2, "min_pattern_size": 3, "min_count": 2}, "from 0 to 2"),
        ({"min_pattern_size": 1}, "from 0 to 0 (max_pattern_size)"),
        ({"max_pattern_size": 2, "min_count": 1}, "min_count=1 is not legal"),
        ({"min_count": -1}, "min_count=-1"),
        ({"max_pattern_size": 2.0}, "max_pattern_size=2.0"),
    ],
)
def test_repetition_detection_is_checked(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SamplingParamsError) as caught:
        RepetitionDetectionParams(**fields)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "no constraint: exactly one of json, regex, choice"),
        ({"regex": "a", "choice": ["b"]}, "regex, choice: exactly one"),
        ({"json": ""}, "json=''"),
        ({"json": {}}, "json={}"),
        ({"json": "{"}, "json='{'"),
        ({"json": "[1]"}, "json='[1]'"),
        ({"json": {"a": object()}}, "not JSON serializable"),
        ({"json": 3}, "json=3"),
        ({"regex": ""}, "regex=''"),
        ({"regex": "a\0b"}, "no NUL"),
        ({"regex": 3}, "regex=3"),
        (
            {"regex": "a\ud800"},
            r"regex='a\ud800' is not legal: it must be text that can be written",
        ),
        ({"json_object": True, "whitespace_pattern": "\ud800"}, r"whitespace_pattern='\ud800'"),
        ({"grammar": "\ud800"}, r"grammar='\ud800'"),
        ({"choice": []}, "at least one text"),
        ({"choice": ["a", ""]}, "choice=''"),
        ({"choice": "ab"}, "choice='ab'"),
        ({"grammar": "  "}, "grammar='  '"),
        ({"structural_tag": ""}, "structural_tag=''"),
        ({"json": "[" * 5000}, "recursion"),
        ({"json": '{"minimum": ' + "9" * 5000 + "}"}, "digits"),
        ({"json_object": 1}, "json_object=1"),
        ({"json_object": False}, "json_object=False"),
        (
            {"json_object": True, "whitespace_pattern": " ", "disable_any_whitespace": True},
            "None when disable_any_whitespace is set",
        ),
        ({"json_object": True, "disable_any_whitespace": 1}, "disable_any_whitespace=1"),
        ({"json_object": True, "disable_additional_properties": 1}, "properties=1"),
        ({"json_object": True, "whitespace_pattern": ""}, "whitespace_pattern=''"),
    ],
)
def test_structured_outputs_are_checked(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SamplingParamsError) as caught:
        StructuredOutputsParams(**fields)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"json": {"type": "object"}},
        {"json": '{"type": "object"}'},
        {"choice": ["a", "b"]},
        {"grammar": "root ::= 'a'"},
        {"json_object": True},
        {"structural_tag": "{}"},
    ],
)
def test_structured_outputs_may_be_any_of_six(fields: dict[str, Any]) -> None:
    StructuredOutputsParams(**fields)


def test_unknown_fields_cannot_be_passed() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0.5)  # type: ignore[call-arg]


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().temperature = 0.5  # type: ignore[misc]


def test_greedy_ignores_truncation() -> None:
    params = SamplingParams(temperature=1e-6, top_p=0.5, top_k=3, min_p=0.2)
    assert params.greedy
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.0, 1.0, 0, 0.0)


def test_tiny_temperature_is_raised_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        params = SamplingParams(temperature=0.001)
    assert params.temperature == 0.01
    assert "0.001" in caplog.text


def test_values_are_normalised() -> None:
    params = SamplingParams(
        stop="END", stop_token_ids=[3, 3, 5], top_k=-1, seed=-1, logprobs=True, temperature=1
    )
    assert params.stop == params.stop_strings == ("END",)
    assert params.stop_token_ids == params.stop_ids == (3, 5)
    assert params.top_k == 0
    assert params.seed is None
    assert params.logprobs == 1
    assert SamplingParams(logprobs=False).logprobs is None
    assert SamplingParams(stop=["a", "b", "a"]).stop == ("a", "b")
    assert SamplingParams(max_tokens=None, min_tokens=10**6).min_tokens == 10**6


def test_numpy_numbers_are_numbers() -> None:
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(4))  # type: ignore[arg-type]
    assert type(params.temperature) is float
    assert type(params.top_k) is int


def test_stop_strings_need_text() -> None:
    with pytest.raises(SamplingParamsError, match="detokenize=True"):
        SamplingParams(stop="x", detokenize=False)
    assert SamplingParams(stop_token_ids=[1], detokenize=False).stop_ids == (1,)


def test_model_defaults_apply() -> None:
    defaults = {
        "temperature": SamplingDefault(0.6, "generation_config.json"),
        "top_k": SamplingDefault(20, "generation_config.json"),
        "max_new_tokens": SamplingDefault(99, "generation_config.json"),
    }
    params = resolve_defaults(defaults)
    assert (params.temperature, params.top_k, params.max_tokens) == (0.6, 20, 99)
    assert resolve_defaults({}) == SamplingParams()


@pytest.mark.parametrize(("key", "value"), [("top_p", 7.0), ("surprise", 1)])
def test_model_defaults_that_cannot_be_used_name_their_origin(key: str, value: float) -> None:
    with pytest.raises(ArtifactError, match=r"generation_config\.json") as caught:
        resolve_defaults({key: SamplingDefault(value, "generation_config.json")})
    assert key in str(caught.value)
