"""Structured outputs end to end on a tiny artifact."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import (
    LLM,
    BeamSearchParams,
    FlatLogprobs,
    MissingDependencyError,
    SamplingParams,
    SamplingParamsError,
    StructuredOutputsParams,
)

SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "maxLength": 4},
    },
    "required": ["id", "name"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1) as llm:
        yield llm


def formed(fields: dict[str, Any] | None = None, **form: Any) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": 120, "structured_outputs": StructuredOutputsParams(**form)}
        | (fields or {})
    )


def test_every_output_follows_its_own_form(llm: LLM) -> None:
    params = [
        formed({"n": 5, "seed": 1}, json=SCHEMA, disable_any_whitespace=True),
        formed({"temperature": 0}, regex="[a-c]{3,5}"),
        SamplingParams(max_tokens=7, temperature=0),
        formed({"seed": 2, "n": 2}, choice=["left", "right"]),
    ]
    objects, text, free, choices = llm.generate(["a", "b", "c", "d"], params)
    for each in objects.outputs:
        assert each.finish_reason == "stop"
        value = json.loads(each.text)
        assert set(value) == {"id", "name"}
        assert 0 <= value["id"] <= 99
    assert len({each.text for each in objects.outputs}) > 1
    assert re.fullmatch("[a-c]{3,5}", text.outputs[0].text)
    assert {each.text for each in choices.outputs} <= {"left", "right"}
    assert free.outputs == llm.generate("c", params[2])[0].outputs, "others are not constrained"


def test_a_form_does_not_depend_on_what_runs_beside(llm: LLM) -> None:
    params = formed({"n": 3, "seed": 4, "temperature": 0.9}, json=SCHEMA)
    (alone,) = llm.generate("x", params)
    others = formed({"seed": 9}, regex="(ab|c){10}")
    _, among, _ = llm.generate(["p", "x", "q"], [others, params, others])
    assert among.outputs == alone.outputs
    told = list(llm.stream("x", params))
    for index, whole in enumerate(alone.outputs):
        parts = [part for news in told for part in news.outputs if part.index == index]
        assert "".join(part.text for part in parts) == whole.text
        assert parts[-1].finish_reason == whole.finish_reason


def test_beams_follow_a_form(llm: LLM) -> None:
    form = StructuredOutputsParams(regex="[ab]{2}c?")
    (found,) = llm.beam_search([{"prompt": "x"}], BeamSearchParams(4, 6, structured_outputs=form))
    texts = [sequence.generated_text for sequence in found.sequences]
    assert len(set(texts)) == 4
    assert all(re.fullmatch("[ab]{2}c?", text) for text in texts)


def test_a_bad_schema_fails_when_the_request_is_made(llm: LLM) -> None:
    good, bad = formed(choice=["yes"]), formed(json={"type": "banana"})
    with pytest.raises(SamplingParamsError, match=r"prompt 1: structured_outputs.json=.*banana"):
        llm.generate(["a", "b"], [good, bad])
    (output,) = llm.generate("a", good)
    assert output.outputs[0].text == "yes"


def test_a_form_that_explodes_ends_its_output_alone(llm: LLM) -> None:
    explosive = formed(
        {"ignore_eos": True, "max_tokens": 300, "seed": 1}, regex=r"(\w+\s?){1,5000}x"
    )
    failed, fine = llm.generate(["a", "b"], [explosive, formed(choice=["yes"])])
    assert failed.outputs[0].finish_reason == "error"
    assert "too many expressions" in str(failed.error)
    assert fine.outputs[0].text == "yes"


def test_only_a_request_with_a_form_needs_the_library(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with LLM(tiny_artifact, threads=1) as llm:
        with pytest.raises(MissingDependencyError, match="pip install"):
            llm.generate("a", formed(choice=["yes"]))
        assert llm.generate("a", SamplingParams(max_tokens=2))


def test_log_probabilities_are_those_before_the_mask(llm: LLM) -> None:
    fields = {"logprobs": 3, "flat_logprobs": True, "temperature": 0}
    (output,) = llm.generate("a", formed(fields, choice=["zzz"]))
    (free,) = llm.generate("a", SamplingParams(temperature=0, logprobs=3, max_tokens=1))
    scores = output.outputs[0].logprobs
    assert isinstance(scores, FlatLogprobs)
    assert free.outputs[0].logprobs is not None
    likeliest = next(iter(free.outputs[0].logprobs[0]))
    assert likeliest in scores[0]
    assert scores[0][output.outputs[0].token_ids[0]].rank != 1
