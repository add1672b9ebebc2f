"""BeamSearchParams: vLLM's fields and defaults, and an error for all that is not legal."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest

from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling.structured import StructuredOutputsParams

VLLM = {
    "ignore_eos": False,
    "temperature": 0.0,
    "length_penalty": 1.0,
    "include_stop_str_in_output": False,
    "structured_outputs": None,
    "skip_special_tokens": True,
    "watermarking": None,
    "allowed_token_ids": None,
}


def test_the_fields_of_vllm_come_first_with_its_defaults() -> None:
    fields = dataclasses.fields(BeamSearchParams)
    assert [each.name for each in fields[:10]] == ["beam_width", "max_tokens", *VLLM]
    assert {name: getattr(BeamSearchParams(5, 50), name) for name in VLLM} == VLLM
    assert BeamSearchParams(beam_width=5, max_tokens=50) == BeamSearchParams(5, 50, False)


def test_lists_become_tuples_without_doubles() -> None:
    params = BeamSearchParams(
        2, 9, stop="end", stop_token_ids=[4, 4, 2], allowed_token_ids=[7, 1, 7]
    )
    assert params.stop == params.stop_strings == ("end",)
    assert params.stop_token_ids == params.stop_ids == (4, 2)
    assert params.allowed_token_ids == (7, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beam_width": 0}, r"beam_width=0 is not legal: .* from 1 to 16384"),
        ({"beam_width": 16385}, "beam_width=16385 .* from 1 to 16384"),
        ({"beam_width": 2.0}, r"beam_width=2\.0 .* an integer"),
        ({"beam_width": True}, "beam_width=True .* an integer"),
        ({"max_tokens": 0}, "max_tokens=0 .* at least 1"),
        ({"max_tokens": None}, "max_tokens=None .* at least 1"),
        ({"ignore_eos": 1}, "ignore_eos=1 .* True or False"),
        ({"temperature": -0.1}, r"temperature=-0\.1 .* from 0 to 2"),
        ({"temperature": float("nan")}, "temperature=nan .* from 0 to 2"),
        ({"length_penalty": 11}, "length_penalty=11 .* from -10 to 10"),
        ({"length_penalty": float("inf")}, "length_penalty=inf .* from -10 to 10"),
        ({"length_penalty": None}, "length_penalty=None .* from -10 to 10"),
        ({"include_stop_str_in_output": "yes"}, "include_stop_str_in_output='yes' .* True or"),
        ({"skip_special_tokens": None}, "skip_special_tokens=None .* True or False"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs=.* StructuredOutputsParams"),
        ({"watermarking": True}, "watermarking=True is unsupported"),
        ({"watermarking": 0}, "watermarking=0 .* a bool, or None"),
        ({"allowed_token_ids": []}, r"allowed_token_ids=\[\] .* at least one id"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids=-1 .* at least 0"),
        ({"algorithm": "beam"}, "algorithm='beam' .* 'vllm' or 'hf'"),
        ({"algorithm": "hf", "early_stopping": 1}, "early_stopping=1 .* True, False or 'never'"),
        ({"algorithm": np.array(["hf", "hf"])}, r"algorithm=array.* 'vllm' or 'hf'"),
        ({"algorithm": ["hf"]}, r"algorithm=\['hf'\] .* 'vllm' or 'hf'"),
        ({"early_stopping": np.array([1, 0])}, "early_stopping=array.* True, False or 'never'"),
        ({"algorithm": "hf", "early_stopping": "now"}, "early_stopping='now' .* 'never'"),
        ({"early_stopping": True}, "early_stopping=True .* False with algorithm='vllm'"),
        ({"early_stopping": "never"}, "early_stopping='never' .* algorithm='hf'"),
        ({"stop": ""}, "stop='' .* at least one character"),
        ({"stop": ["a", 1]}, "stop=1 .* text"),
        ({"stop_token_ids": 3}, "stop_token_ids=3 .* a list"),
        ({"stop_token_ids": [1.5]}, r"stop_token_ids=1\.5 .* an integer"),
        ({"min_tokens": -1}, "min_tokens=-1 .* from 0 to 9"),
        ({"min_tokens": 10}, r"min_tokens=10 .* from 0 to 9 \(max_tokens\)"),
    ],
)
def test_what_is_not_legal(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingParamsError, match=message):
        BeamSearchParams(**({"beam_width": 2, "max_tokens": 9} | fields))


def test_neutral_and_structured_values_are_taken() -> None:
    form = StructuredOutputsParams(regex="a+")
    params = BeamSearchParams(2, 9, watermarking=False, structured_outputs=form)
    assert params.structured_outputs is form


def test_a_temperature_is_taken_and_said_to_be_without_effect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        BeamSearchParams(2, 9)
        assert not caplog.records
        BeamSearchParams(2, 9, temperature=0.7)
    assert "temperature=0.7 has no effect" in caplog.text


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BeamSearchParams(2, 9).beam_width = 3  # type: ignore[misc]
