"""What the parameters about text make of the same tokens, end to end on a tiny artifact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import LLM, CompletionOutput, SamplingParams

TEXT = "H<s>i!</s>??"


@pytest.fixture(scope="module")
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1) as llm:
        yield llm


def said(llm: LLM, **fields: Any) -> tuple[CompletionOutput, list[int]]:
    """The output of an engine that is made to say TEXT; and the ids of TEXT."""
    tokens = llm.get_tokenizer().encode(TEXT, add_special_tokens=False)
    assert len(tokens) == 7

    def spell(output: list[int], logits: Any) -> Any:
        logits[:] = -np.inf
        logits[tokens[len(output)]] = 0
        return logits

    params = SamplingParams(max_tokens=len(tokens), logits_processors=[spell], **fields)
    (output,) = llm.generate("x", params)
    return output.outputs[0], tokens


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "Hi!"),
        ({"skip_special_tokens": False}, "H<s>i!"),
        ({"include_stop_str_in_output": True}, "Hi!"),
        ({"include_stop_str_in_output": True, "skip_special_tokens": False}, "H<s>i!</s>"),
        ({"ignore_eos": True}, "Hi!??"),
        ({"ignore_eos": True, "skip_special_tokens": False}, "H<s>i!</s>??"),
        ({"detokenize": False}, ""),
    ],
)
def test_the_text_of_special_tokens(llm: LLM, fields: dict[str, Any], text: str) -> None:
    output, tokens = said(llm, **fields)
    assert output.text == text
    ended = output.finish_reason == "stop"
    assert ended != ("ignore_eos" in fields)
    assert output.token_ids == (tokens[:5] if ended else tokens)


@pytest.mark.parametrize(
    ("fields", "text", "count"),
    [
        ({"stop": "Hi"}, "", 3),
        ({"stop": ["zz", "i"]}, "H", 3),
        ({"stop": "Hi", "include_stop_str_in_output": True}, "Hi", 3),
        ({"stop": "s>i", "skip_special_tokens": False}, "H<", 3),
        ({"stop": "H", "min_tokens": 2, "ignore_eos": True}, "Hi!??", 7),
    ],
)
def test_the_text_at_a_stop(llm: LLM, fields: dict[str, Any], text: str, count: int) -> None:
    output, tokens = said(llm, **fields)
    assert output.text == text
    assert output.token_ids == tokens[:count]


@pytest.mark.parametrize(("token", "text", "count"), [("!", "Hi!", 4), ("<s>", "H", 2)])
def test_a_stop_token_shows_unless_it_is_special(
    llm: LLM, token: str, text: str, count: int
) -> None:
    (stop,) = llm.get_tokenizer().encode(token, add_special_tokens=False)
    output, tokens = said(llm, stop_token_ids=[stop])
    assert (output.text, output.stop_reason) == (text, stop)
    assert output.token_ids == tokens[:count]
