"""Sampling parameters: defaults, normalisation, refusals that name field, value and range."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

from enginewright.runtime.errors import ArtifactError, SamplingParamsError
from enginewright.runtime.manifest import SamplingDefault
from enginewright.runtime.sampling.params import SamplingParams, resolve_defaults


def test_defaults_are_those_of_vllm() -> None:
    params = SamplingParams()
    assert dataclasses.asdict(params) == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": None,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "max_tokens": 16,
        "min_tokens": 0,
        "skip_special_tokens": True,
        "include_stop_str_in_output": False,
        "detokenize": True,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": None,
    }
    assert not params.greedy


@pytest.mark.parametrize(
    ("field", "value", "legal"),
    [
        ("temperature", -0.1, "from 0 to 2"),
        ("temperature", 2.1, "from 0 to 2"),
        ("temperature", float("nan"), "finite"),
        ("temperature", float("inf"), "finite"),
        ("temperature", "hot", "finite number"),
        ("temperature", True, "finite number"),
        ("top_p", 0.0, "above 0 to 1"),
        ("top_p", 1.01, "above 0 to 1"),
        ("top_k", -2, "at least -1"),
        ("top_k", 3.0, "an integer"),
        ("min_p", -0.1, "from 0 to 1"),
        ("min_p", 1.1, "from 0 to 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("repetition_penalty", float("inf"), "finite"),
        ("presence_penalty", 2.5, "from -2 to 2"),
        ("frequency_penalty", -2.5, "from -2 to 2"),
        ("seed", 2**64, "an integer from"),
        ("seed", 1.5, "an integer"),
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", 1.5, "an integer"),
        ("min_tokens", -1, "from 0 to 16"),
        ("min_tokens", 17, "from 0 to 16 (max_tokens)"),
        ("logprobs", -2, "at least -1"),
        ("stop", "", "at least one character"),
        ("stop", ["a", ""], "at least one character"),
        ("stop", [1], "at least one character"),
        ("stop", 7, "a list"),
        ("stop_token_ids", [-1], "at least 0"),
        ("stop_token_ids", ["a"], "an integer"),
        ("stop_token_ids", 5, "a list"),
        ("ignore_eos", 1, "True or False"),
        ("detokenize", None, "True or False"),
    ],
)
def test_illegal_values_are_named(field: str, value: object, legal: str) -> None:
    with pytest.raises(SamplingParamsError) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(f"{field}=")
    assert legal in message
    shown = value[-1] if isinstance(value, list) else value
    assert repr(shown) in message


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
