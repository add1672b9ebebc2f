"""Options of LLM: what is legal, and that each wrong one is named with its value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.cores import MOST_THREADS
from enginewright.runtime.errors import ChatTemplateError, EnginewrightError, RequestError


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        ("max_batch", "3", "an integer from 1 to 4, or None for the engine's own limit of 4"),
        ("max_batch", True, "from 1 to 4"),
        ("max_batch", 5, "larger limits.max_batch"),
        ("max_context", 2.5, "an integer from 2 to 600"),
        ("max_context", False, "from 2 to 600"),
        ("max_context", 1, "from 2 to 600"),
        ("threads", "2", "an integer from 1 to 256, or None for all available cores"),
        ("threads", 0, "from 1 to 256"),
        ("threads", True, "from 1 to 256"),
        ("seed", -1, "an integer from 0 to 18446744073709551615, or None for fresh entropy"),
        ("seed", 1.0, "an integer from 0"),
        ("seed", False, "an integer from 0"),
        ("seed", 2**64, "an integer from 0"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_legal(
    tiny_artifact: Path, name: str, value: Any, legal: str
) -> None:
    with pytest.raises(EnginewrightError) as caught:
        LLM(tiny_artifact, **{name: value})
    assert str(caught.value).startswith(f"{name}={value!r} is not legal: it must be ")
    assert legal in str(caught.value)


@pytest.mark.parametrize("model", [None, 5, "", b"artifacts/x"])
def test_a_model_that_is_no_path_is_named(model: Any) -> None:
    with pytest.raises(EnginewrightError, match=r"^model=.* the path of an artifact's folder"):
        LLM(model)


def test_integers_of_numpy_are_integers(tiny_artifact: Path) -> None:
    options: dict[str, Any] = {"threads": 1, "seed": 3, "max_batch": 2, "max_context": 40}
    params = SamplingParams(max_tokens=4)
    with LLM(tiny_artifact, **options) as plain:
        expected = plain.generate([1, 2], params)[0].outputs[0].token_ids
    with LLM(tiny_artifact, **{name: np.int64(value) for name, value in options.items()}) as llm:
        assert (llm.max_batch, llm.max_context) == (2, 40)
        assert llm.generate([1, 2], params)[0].outputs[0].token_ids == expected


def test_more_threads_than_the_machine_has_give_the_same_tokens(
    tiny_artifact: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    prompts = [[1, 2, 3], [4] * 40]
    with LLM(tiny_artifact, threads=1) as one, LLM(tiny_artifact, threads=MOST_THREADS) as many:
        expected = [each.outputs[0].token_ids for each in one.generate(prompts, params)]
        assert [each.outputs[0].token_ids for each in many.generate(prompts, params)] == expected
    (said,) = [each.getMessage() for each in caplog.records if "threads=" in each.getMessage()]
    assert said.startswith(f"threads={MOST_THREADS}: this process may use ")


@pytest.mark.parametrize("chunk", [0, "2", 1.5, True])
def test_a_wrong_chunk_is_named(tiny_artifact: Path, chunk: Any) -> None:
    with (
        LLM(tiny_artifact, threads=1) as llm,
        pytest.raises(RequestError, match=rf"chunk={chunk!r} is not legal: .* of at least 1"),
    ):
        llm.logits([1, 2, 3], chunk=chunk)


@pytest.mark.parametrize("template", ["", 5, b"{{ messages }}"])
def test_a_template_that_is_none_is_named(tiny_artifact: Path, template: Any) -> None:
    said = r"^chat_template=.* is not legal: it must be the path of a template, or the template"
    with pytest.raises(ChatTemplateError, match=said):
        LLM(tiny_artifact, chat_template=template)
    with LLM(tiny_artifact, threads=1) as llm, pytest.raises(ChatTemplateError, match=said):
        llm.chat([{"role": "user", "content": "hi"}], chat_template=template)
