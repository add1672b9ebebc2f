"""What speculative_config may say."""

from __future__ import annotations

from typing import Any

import pytest

from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.speculation.config import SpeculativeConfig, read_config


@pytest.mark.parametrize(
    ("given", "method", "lookup"),
    [
        ({"method": "ngram"}, "ngram", (5, 2)),
        ({}, "ngram", (5, 2)),
        ({"model": "ngram"}, "ngram", (5, 2)),
        ({"method": "ngram", "prompt_lookup_max": 1}, "ngram", (1, 1)),
        ({"method": "ngram", "prompt_lookup_min": 7}, "ngram", (7, 7)),
        ({"prompt_lookup_max": 4, "prompt_lookup_min": 3}, "ngram", (4, 3)),
        ({"method": None, "draft_tensor_parallel_size": 1}, "ngram", (5, 2)),
    ],
)
def test_n_grams(given: dict[str, Any], method: str, lookup: tuple[int, int]) -> None:
    config = read_config({"num_speculative_tokens": 5} | given)
    assert config is not None
    assert (config.method, config.lookup) == (method, lookup)


@pytest.mark.parametrize("method", [{}, {"method": "draft_model"}])
def test_a_model_drafts(method: dict[str, Any]) -> None:
    config = read_config({"num_speculative_tokens": 4, "model": "some/where", **method})
    assert config is not None
    assert config.method == "draft_model"
    assert read_config(config) is config
    assert read_config(None) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ngram", "speculative_config='ngram' is not legal: it must be a dict such as"),
        ({"method": "ngram"}, "has no num_speculative_tokens: it must say how many"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens=0 is not legal: it must be an int"),
        ({"num_speculative_tokens": 65}, "an integer from 1 to 64"),
        ({"num_speculative_tokens": True}, "num_speculative_tokens=True is not legal"),
        ({"num_speculative_tokens": 2.0}, "num_speculative_tokens=2.0 is not legal"),
        ({"method": "eagle"}, "method='eagle' must be 'ngram' or 'draft_model'"),
        ({"method": ["ngram"]}, r"method=\['ngram'\] must be 'ngram' or"),
        ({"method": "draft_model"}, "model=None must name the artifact that drafts"),
        ({"model": 3}, "model=3 must name the artifact"),
        ({"model": ""}, "model='' must name the artifact"),
        ({"method": "ngram", "model": "a"}, "model='a' must be left out with the method 'ngram'"),
        ({"prompt_lookup_max": 0}, "prompt_lookup_max=0 is not legal"),
        ({"prompt_lookup_min": -1}, "prompt_lookup_min=-1 is not legal"),
        (
            {"prompt_lookup_max": 3, "prompt_lookup_min": 4},
            "prompt_lookup_min=4 must not be above prompt_lookup_max, which is 3",
        ),
        ({"model": "a", "prompt_lookup_max": 3}, "prompt_lookup_max=3 is for the method 'ngram'"),
        ({"model": "a", "revision": 3}, "revision=3 must be text"),
        ({"num_spec_tokens": 5}, "no key 'num_spec_tokens': did you mean num_speculative_tokens?"),
        ({"zzz": 1}, "no key 'zzz': legal are num_speculative_tokens, method, model"),
        ({"draft_tensor_parallel_size": 2}, "draft_tensor_parallel_size=2 is unsupported; legal"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_legal(given: Any, said: str) -> None:
    if isinstance(given, dict) and given != {"method": "ngram"}:
        given = {"num_speculative_tokens": 5} | given
    with pytest.raises(EnginewrightError, match=said):
        read_config(given)


def test_a_config_is_checked_however_it_is_made() -> None:
    with pytest.raises(EnginewrightError, match="num_speculative_tokens"):
        SpeculativeConfig(num_speculative_tokens=0)
