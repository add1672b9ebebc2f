"""Lines typed into chat, and parameters read from text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginewright.cli.chat_commands import (
    HELP,
    Clear,
    Exit,
    Say,
    Set,
    Show,
    change,
    parse,
    settable,
)
from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling.params import SamplingParams


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("hello", Say("hello")),
        ("  two words \n", Say("two words")),
        ("//etc/passwd is a file", Say("/etc/passwd is a file")),
        ("", None),
        ("   \t", None),
        ("/help", Show(HELP)),
        ("/clear ", Clear()),
        ("/exit", Exit()),
        ("/set", Set()),
        ("/set temperature=0.7", Set("temperature", "0.7")),
        ("/set  top_k = 5 ", Set("top_k", "5")),
        ("/set system=You are = kind", Set("system", "You are = kind")),
        ("/set system=", Set("system", "")),
    ],
)
def test_a_line_means(line: str, action: object) -> None:
    assert parse(line) == action


@pytest.mark.parametrize("line", ["/hlep", "/", "/set temperature", "/set =1", "/exit now"])
def test_a_wrong_command_is_answered_and_not_sent_to_the_model(line: str) -> None:
    action = parse(line)

    assert isinstance(action, Show)
    assert action.text != HELP


@given(st.text())
def test_only_a_line_without_a_slash_or_with_two_is_said(line: str) -> None:
    action = parse(line)

    text = line.strip()
    assert isinstance(action, Say) == (bool(text) and (text[0] != "/" or text[1:2] == "/"))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("temperature", "0.5", 0.5),
        ("max_tokens", "7", 7),
        ("max_tokens", "none", None),
        ("seed", "12", 12),
        ("seed", "none", None),
        ("ignore_eos", "true", True),
        ("ignore_eos", "False", False),
        ("top_p", "1", 1.0),
    ],
)
def test_a_parameter_is_read_by_its_type(key: str, text: str, value: object) -> None:
    found = getattr(change(SamplingParams(), key, text), key)

    assert found == value
    assert type(found) is type(value)


def test_stop_is_text() -> None:
    assert change(SamplingParams(), "stop", "12").stop_strings == ("12",)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("temperature", "warm", "temperature='warm'"),
        ("temperature", "9", "temperature=9.0"),
        ("top_k", "1.5", "top_k='1.5'"),
        ("ignore_eos", "maybe", "ignore_eos='maybe'"),
        ("temprature", "1", "temprature is no parameter; there are temperature"),
        ("logprobs", "1", "logprobs is no parameter"),
    ],
)
def test_a_wrong_value_is_named(key: str, text: str, said: str) -> None:
    with pytest.raises(SamplingParamsError, match=said):
        change(SamplingParams(), key, text)


def test_every_settable_parameter_can_be_set_to_what_it_is() -> None:
    params = SamplingParams(stop="x")
    for key in settable():
        value = getattr(params, key)
        text = value[0] if key == "stop" else str(value)
        assert change(params, key, text) == params, key
