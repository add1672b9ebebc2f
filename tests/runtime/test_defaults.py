"""Sampling defaults: of the model, neutral, of a folder, overridden; and what explains them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import (
    LLM,
    ArtifactError,
    BeamSearchParams,
    EnginewrightError,
    RequestOutputKind,
    SamplingParams,
    SamplingParamsError,
)
from enginewright.runtime.artifact.manifest import SamplingDefault
from enginewright.runtime.sampling.defaults import choose_defaults
from enginewright.runtime.text.prompt_warnings import _said

OWN = {
    "temperature": SamplingDefault(0.6, "generation_config.json: temperature"),
    "top_p": SamplingDefault(0.9, "generation_config.json: top_p"),
    "max_tokens": SamplingDefault(99, "generation_config.json: max_new_tokens"),
}


@pytest.fixture
def with_defaults(
    make_tiny: Callable[..., Path], manifest_writer: Callable[..., Any]
) -> Callable[..., Path]:
    def make(**defaults: SamplingDefault) -> Path:
        from enginewright.runtime.artifact.artifact import Artifact

        folder = make_tiny()
        entry = Artifact.open(folder).engine()
        manifest_writer(folder, entry, name="defaults", sampling_defaults=defaults)
        return folder

    return make


@pytest.fixture
def manifest(with_defaults: Callable[..., Path]) -> Any:
    from enginewright.runtime.artifact.artifact import Artifact

    return Artifact.open(with_defaults(**OWN)).manifest


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Any) -> Path:
        folder = tmp_path / "config"
        folder.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "generation_config.json").write_text(text, "utf-8")
        return folder

    return write


def test_the_models_own_hold(manifest: Any) -> None:
    defaults = choose_defaults(manifest)
    assert defaults.params == SamplingParams(temperature=0.6, top_p=0.9, max_tokens=99)
    assert defaults.origins == {name: default.origin for name, default in OWN.items()}


def test_neutral_ones_are_vllms(manifest: Any) -> None:
    assert choose_defaults(manifest, "vllm").params == SamplingParams()


@pytest.mark.parametrize("base", ["auto", "vllm"])
def test_an_override_goes_over_both(manifest: Any, base: str) -> None:
    override = {"temperature": 0.1, "top_p": None, "max_new_tokens": 7, "top_k": 5}
    defaults = choose_defaults(manifest, base, override)
    expected = SamplingParams(temperature=0.1, max_tokens=7, top_k=5)
    assert defaults.params == expected
    assert set(defaults.origins.values()) == {"override_generation_config"}
    assert "top_p" not in defaults.origins


def test_a_folders_config_takes_the_models_place(
    manifest: Any, config: Callable[..., Path]
) -> None:
    folder = config({"top_k": 3, "do_sample": True, "temperature": None, "eos_token_id": [7, 8]})
    for given in (folder, str(folder)):
        defaults = choose_defaults(manifest, given)
        assert defaults.params == SamplingParams(top_k=3)
        assert defaults.origins == {"top_k": f"{folder / 'generation_config.json'}: top_k"}
        assert defaults.eos_token_ids == (7, 8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "legal are 'auto'.*cannot be read"),
        ("[]", "is not a JSON object"),
        ({"top_p": 3}, r"top_p.*cannot be used: top_p=3"),
        ({"eos_token_id": 258}, "eos_token_id 258 is not legal: .* 0 to 257"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id '</s>' is not legal"),
        ({"eos_token_id": True}, "eos_token_id True is not legal"),
    ],
)
def test_a_folder_that_is_wrong_is_named(
    manifest: Any, config: Callable[..., Path], content: Any, said: str
) -> None:
    folder = config(content)
    with pytest.raises(EnginewrightError, match=said) as caught:
        choose_defaults(manifest, folder)
    assert str(folder) in str(caught.value)


def test_a_models_own_mistake_is_not_the_overrides(with_defaults: Callable[..., Path]) -> None:
    folder = with_defaults(top_p=SamplingDefault(7.0, "generation_config.json: top_p"))
    with pytest.raises(ArtifactError, match=r"sampling default from generation_config\.json"):
        LLM(folder, override_generation_config={"top_k": 3})
    with LLM(folder, threads=1, generation_config="vllm") as llm:
        assert llm.get_default_sampling_params() == SamplingParams()


@pytest.mark.parametrize("base", ["auto", "vllm", "folder"])
def test_the_models_end_tokens_always_end_an_output(
    tiny_artifact: Path, config: Callable[..., Path], base: str
) -> None:
    given = config({"eos_token_id": 65}) if base == "folder" else base
    with LLM(tiny_artifact, threads=1, generation_config=given) as llm:
        for token, ends in ((257, True), (65, base == "folder")):
            params = SamplingParams(logit_bias={token: 100.0}, temperature=0, max_tokens=3)
            (output,) = llm.generate("a", params)
            assert (output.outputs[0].finish_reason == "stop") is ends
            assert len(output.outputs[0].token_ids) == (1 if ends else 3)


def test_calls_without_parameters_are_warned_of_the_models_defaults(
    with_defaults: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_defaults(**OWN)
    for options, warned in (
        ({"generation_config": "vllm"}, False),
        ({"generation_config": "vllm", "override_generation_config": {"top_k": 3}}, False),
        ({}, True),
    ):
        _said.clear()
        caplog.clear()
        with LLM(folder, threads=1, **options) as llm:
            llm.generate("a", SamplingParams(max_tokens=1))
            assert "model-defaults" not in caplog.text
            llm.generate("a")
            assert ("model-defaults" in caplog.text) is warned
    assert "top_p=0.9 (generation_config.json: top_p)" in caplog.text


def test_every_parameter_is_explained_with_its_origin(with_defaults: Callable[..., Path]) -> None:
    override = {"top_k": 5}
    with LLM(with_defaults(**OWN), threads=1, seed=3, override_generation_config=override) as llm:
        found = llm.explain()
        assert {each.name for each in found} >= set(SamplingParams.__dataclass_fields__)
        assert (found["temperature"].value, found["temperature"].origin) == (
            0.6,
            "generation_config.json: temperature",
        )
        assert found["top_k"].origin == "override_generation_config"
        assert found["min_p"].origin == "default"
        assert found["eos_token_ids"].value == [257]
        assert found["LLM's seed"].value == 3
        assert found.as_dict()["max_tokens"] == {
            "value": 99,
            "origin": "generation_config.json: max_new_tokens",
        }
        (row,) = (line for line in str(found).splitlines() if line.startswith("top_p "))
        assert row.split() == ["top_p", "0.9", "generation_config.json:", "top_p"]
        with pytest.raises(KeyError, match="top_q"):
            found["top_q"]


def test_parameters_that_are_given_leave_the_models_aside(
    with_defaults: Callable[..., Path],
) -> None:
    with LLM(with_defaults(**OWN), threads=1) as llm:
        params = SamplingParams(top_p=0.5, seed=1, output_kind=RequestOutputKind.DELTA)
        found = llm.explain(params)
        assert (found["top_p"].value, found["top_p"].origin) == (0.5, "given by the call")
        assert found["temperature"].value == 1.0
        assert found["temperature"].origin == (
            "default; not 0.6 of generation_config.json: temperature, for sampling_params were "
            "given"
        )
        assert found["output_kind"].origin == "given by the call"


def test_what_greedy_sampling_ignores_is_said(with_defaults: Callable[..., Path]) -> None:
    options = {"override_generation_config": {"temperature": 0}}
    with LLM(with_defaults(**OWN), threads=1, **options) as llm:
        found = llm.explain()["top_p"]
    assert found.value == 1.0
    assert found.origin == "greedy (temperature 0), whatever generation_config.json: top_p says"


@pytest.mark.parametrize("params", [5, {"top_p": 0.5}, BeamSearchParams(2, 2), np.array([1, 2])])
def test_only_sampling_params_are_explained(tiny_artifact: Path, params: Any) -> None:
    kind = type(params).__name__
    with (
        LLM(tiny_artifact, threads=1) as llm,
        pytest.raises(SamplingParamsError, match=f"got a {kind}: legal is a SamplingParams, or"),
    ):
        llm.explain(params)
