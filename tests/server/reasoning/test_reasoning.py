"""Thoughts and answer, for every way of marking and of cutting them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginewright.runtime.errors import RequestError
from enginewright.server.reasoning.formats import (
    REASONING_FORMATS,
    choose_reasoning_parser,
    make_reasoning_parser,
    reasoning_needs_special_tokens,
)

_PIECES = (
    "<think>", "</think>", "[THINK]", "[/THINK]", "Here is my thought process:", "a", " ", "\n",
    "Here's my response:", "Here is my response:", "<", "</th", "Here", "é",
)  # fmt: skip


def split(name: str, *pieces: str, prompt: str = "") -> tuple[str, str]:
    parser = make_reasoning_parser(name, prompt)
    parts = [*map(parser.feed, pieces), parser.finish()]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


@pytest.mark.parametrize(
    ("name", "prompt", "text", "result"),
    [
        ("qwen3", "", "<think>\nHm. \n</think>\n\nYes.\n", ("Hm.", "Yes.\n")),
        ("qwen3", "", "Just this.", ("", "Just this.")),
        ("qwen3", "", "  Just this.", ("", "  Just this.")),
        ("qwen3", "a<think>\n", "Hm.</think>Yes", ("Hm.", "Yes")),
        ("qwen3", "a<think>\n", "<think>Hm.</think>Yes", ("Hm.", "Yes")),
        ("qwen3", "<think>\n\n</think>\n\n", "Yes <think>", ("", "Yes <think>")),
        ("qwen3", "what is <think> for?<|im_end|>", "Yes", ("", "Yes")),
        ("qwen3", "", "<think>\n\n</think>\n\nYes", ("", "Yes")),
        ("qwen3", "", "<think>never ends </thi", ("never ends </thi", "")),
        ("qwen3", "", "<thi", ("", "<thi")),
        ("qwen3", "", "", ("", "")),
        ("deepseek_r1", "", "Hm.\n\nOh.</think>\nYes </think>", ("Hm.\n\nOh.", "Yes </think>")),
        ("deepseek_r1", "", "<think>Hm.</think>Yes", ("Hm.", "Yes")),
        ("deepseek_r1", "", "Hm.", ("Hm.", "")),
        ("mistral", "", "[THINK]Hm.[/THINK]Yes", ("Hm.", "Yes")),
        (
            "granite",
            "",
            "Here is my thought process: Hm.\n\nHere's my response: Yes",
            ("Hm.", "Yes"),
        ),
    ],
)
def test_examples_whole_and_by_character(
    name: str, prompt: str, text: str, result: tuple[str, str]
) -> None:
    assert split(name, text, prompt=prompt) == result
    assert split(name, *text, prompt=prompt) == result


@pytest.mark.parametrize("name", sorted(REASONING_FORMATS))
@given(data=st.data())
def test_no_way_of_cutting_changes_the_result(name: str, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(_PIECES), max_size=10)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = split(name, text)
    assert split(name, *pieces) == split(name, *text) == whole
    assert "".join("".join(whole).split()) in "".join(text.split()) or whole[0]


def test_thoughts_stream() -> None:
    parser = make_reasoning_parser("qwen3", "<think>\n")
    assert parser.feed("Well").reasoning == "Well"
    assert parser.feed(", ").reasoning == ","
    assert parser.feed("yes </").reasoning == " yes"
    assert parser.feed("think>\n\nIt").content == "It"
    assert parser.feed(" is").content == " is"


def test_choice_by_template() -> None:
    assert choose_reasoning_parser("{{ '<think>\\n' }}") == "qwen3"
    assert choose_reasoning_parser("[THINK]") == "mistral"
    assert choose_reasoning_parser("{{ message.content }}") is None
    assert choose_reasoning_parser(None) is None


def test_special_tokens_are_kept_where_a_mark_is_one() -> None:
    assert reasoning_needs_special_tokens("mistral", {"[THINK]"})
    assert not reasoning_needs_special_tokens("qwen3", {"<|im_end|>"})


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(RequestError, match="'r2' is not legal: there are deepseek_r1"):
        make_reasoning_parser("r2")
