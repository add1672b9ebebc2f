"""Tools over HTTP: calls that are demanded, calls that the model writes itself, and none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import openai
import pytest

pytest.importorskip("llguidance")

USER: Any = [{"role": "user", "content": "What is the weather?"}]
CITY = {"type": "string", "enum": ["Paris", "Rome"]}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": CITY},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {"name": "time", "parameters": WEATHER["function"]["parameters"]},
}
# The model is random: a form makes it write what a model that was trained to would.
WRITTEN = {
    "regex": r'Well\. <tool_call>\n\{"name": "weather", "arguments": \{"city": "(Rome|Paris)"\}\}'
    r"\n</tool_call>"
}
Calls = list[tuple[str, Any]]


def joined(stream: Iterable[Any]) -> tuple[str, Calls, str | None]:
    """The content, the calls and the reason of a streamed answer."""
    content, calls, reason = "", [], None
    ids = set()
    for chunk in stream:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or ():
                if call.index == len(calls):
                    assert call.id
                    assert call.id not in ids
                    ids.add(call.id)
                    calls.append([call.function.name, ""])
                calls[call.index][1] += call.function.arguments or ""
    return content, [(name, json.loads(text)) for name, text in calls], reason


def full(answer: Any) -> tuple[str, Calls, str | None]:
    (choice,) = answer.choices
    calls = choice.message.tool_calls or []
    found = [(call.function.name, json.loads(call.function.arguments)) for call in calls]
    return choice.message.content or "", found, choice.finish_reason


def ask(client: openai.OpenAI, stream: bool, **options: Any) -> tuple[str, Calls, str | None]:
    asked = {"model": "tiny", "messages": USER, "max_tokens": 250, "seed": 3, **options}
    if stream:
        return joined(client.chat.completions.create(stream=True, **asked))
    return full(client.chat.completions.create(**asked))


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_function_is_called(client: openai.OpenAI, stream: bool) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    content, calls, reason = ask(client, stream, tools=[TIME, WEATHER], tool_choice=choice)

    assert content == ""
    assert [name for name, _ in calls] == ["weather"]
    assert calls[0][1]["city"] in CITY["enum"]
    assert reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_required(client: openai.OpenAI, stream: bool) -> None:
    content, calls, reason = ask(
        client, stream, tools=[TIME, WEATHER], tool_choice="required", parallel_tool_calls=False
    )

    assert content == ""
    ((name, arguments),) = calls
    assert name in ("time", "weather")
    assert arguments["city"] in CITY["enum"]
    assert reason == "tool_calls"


@pytest.mark.parametrize("choice", [None, "auto"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_the_model_writes_is_read(
    client: openai.OpenAI, stream: bool, choice: str | None
) -> None:
    extra: dict[str, Any] = {"extra_body": {"structured_outputs": WRITTEN}}
    if choice is not None:
        extra["tool_choice"] = choice
    content, calls, reason = ask(client, stream, tools=[WEATHER], **extra)

    assert content.strip() == "Well."
    assert [name for name, _ in calls] == ["weather"]
    assert calls[0][1]["city"] in ("Rome", "Paris")
    assert reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_with_none_a_call_is_text(client: openai.OpenAI, stream: bool) -> None:
    content, calls, reason = ask(
        client,
        stream,
        tools=[WEATHER],
        tool_choice="none",
        extra_body={"structured_outputs": WRITTEN},
    )

    assert content.endswith("</tool_call>")
    assert not calls
    assert reason == "stop"


def test_a_conversation_goes_on_with_a_result(client: openai.OpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    }
    messages: Any = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, tools=[WEATHER], max_tokens=5
    )

    assert answer.choices[0].finish_reason in ("length", "stop")


@pytest.mark.parametrize("format", ["reasoning", "content"])
def test_thoughts_are_told_apart_where_the_prompt_begins_them(
    client: openai.OpenAI, format: str
) -> None:
    """The model never ends them: all of its output is what it thinks."""
    opening = "<think>\n" if format == "reasoning" else "Well"
    messages: Any = [*USER, {"role": "assistant", "content": opening}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    asked = {"model": "tiny", "messages": messages, "max_tokens": 9, "seed": 1}
    answer = client.chat.completions.create(extra_body=extra, **asked)
    told = answer.choices[0].message.model_dump()
    usage: Any = answer.usage
    thought = usage.completion_tokens if format == "reasoning" else 0
    assert usage.completion_tokens_details.reasoning_tokens == thought

    assert bool(told.get("reasoning")) == (format == "reasoning")
    assert bool(told["content"]) == (format == "content")
    streamed = {"reasoning": "", "content": ""}
    stream = client.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, extra_body=extra, **asked
    )
    for chunk in stream:
        if not chunk.choices:
            assert chunk.usage == usage
            continue
        delta = chunk.choices[0].delta.model_dump()
        for name in streamed:
            streamed[name] += delta.get(name) or ""
    assert streamed[format] == told[format]
    hidden = client.chat.completions.create(
        extra_body={**extra, "include_reasoning": False}, **asked
    )
    assert "reasoning" not in hidden.choices[0].message.model_dump()
