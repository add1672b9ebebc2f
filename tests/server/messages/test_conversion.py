"""Anthropic's requests as chat requests, and chat answers as its messages, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from enginewright.runtime.errors import RequestError
from enginewright.server.messages.answer import MessageBuilder
from enginewright.server.messages.request import MessagesRequest
from enginewright.server.serving.pieces import Piece
from enginewright.server.tools.parser import ToolCallDelta

JSON = dict[str, Any]


def chat(*messages: JSON, **fields: Any) -> JSON:
    request = MessagesRequest(model="m", max_tokens=5, messages=list(messages), **fields)
    return request.to_chat().model_dump(exclude_unset=True)


def test_text_blocks_and_a_system_message() -> None:
    user = {
        "role": "user",
        "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
    }
    hint = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    assert chat(user, system=[hint], stop_sequences=["X"], top_k=3) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "A\nB"},
        ],
        "max_completion_tokens": 5,
        "stop": ["X"],
        "top_k": 3,
    }


def test_tool_use_and_its_result() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": "r"}],
    }
    body = chat(
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "A"}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
        tools=[{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    assert body["messages"][1:] == [
        {"role": "assistant", "reasoning": "Hm.", "tool_calls": [call], "content": "A"},
        {"role": "tool", "tool_call_id": "t1", "content": "r"},
        {"role": "user", "content": "and?"},
    ]
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    assert body["tools"][0]["function"]["parameters"] == {"type": "object"}


@pytest.mark.parametrize(
    ("message", "fields", "told"),
    [
        ({"role": "robot", "content": "x"}, {}, r"messages\[0\].role='robot'"),
        ({"role": "user", "content": [{"type": "image"}]}, {}, "takes text only"),
        ({"role": "user", "content": 7}, {}, "must be text or a list of blocks"),
        (
            {"role": "user", "content": "x"},
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            "thinking.budget_tokens has no effect",
        ),
        (
            {"role": "user", "content": "x"},
            {"thinking": {"type": "wat"}},
            "'enabled' or 'disabled'",
        ),
        (
            {"role": "user", "content": "x"},
            {"tools": [{"type": "bash_20250124"}]},
            r"tools\[0\].type",
        ),
        (
            {"role": "user", "content": "x"},
            {"tools": [{"name": "f"}], "tool_choice": {"type": "some"}},
            "tool_choice",
        ),
    ],
)
def test_what_is_not_served_is_named(message: JSON, fields: JSON, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        chat(message, **fields)


def test_thoughts_are_turned_on_and_off() -> None:
    for kind in ("enabled", "disabled"):
        body = chat({"role": "user", "content": "x"}, thinking={"type": kind})
        assert body["chat_template_kwargs"] == {"enable_thinking": kind == "enabled"}


def test_max_tokens_is_needed() -> None:
    with pytest.raises(ValidationError, match="max_tokens"):
        MessagesRequest(model="m", messages=[{"role": "user", "content": "x"}])


def test_a_stream_and_a_whole_answer_hold_the_same() -> None:
    streamed, events = answer(
        Piece(0, reasoning="Hm."),
        Piece(0, "It is "),
        Piece(0, "sunny."),
        Piece(0, calls=(ToolCallDelta(0, "c1", "f", '{"x":'),)),
        Piece(0, calls=(ToolCallDelta(0, arguments="1}"),), finish_reason="tool_calls"),
    )
    call = ToolCallDelta(0, "c1", "f", '{"x":1}')
    whole, _ = answer(Piece(0, "It is sunny.", "Hm.", (call,), finish_reason="tool_calls"))
    assert streamed["content"] == whole["content"]
    assert whole["content"][2] == {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}
    assert whole["stop_reason"] == "tool_use"
    start, delta, stop = (f"content_block_{each}" for each in ("start", "delta", "stop"))
    assert [event["type"] for event in events] == [
        "message_start",
        *(start, delta, stop),
        *(start, delta, delta, stop),
        *(start, delta, delta, stop),
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize(
    ("ended", "stopped", "reason", "sequence"),
    [
        ("stop", None, "end_turn", None),
        ("stop", "X", "stop_sequence", "X"),
        ("length", None, "max_tokens", None),
    ],
)
def test_why_it_ended(ended: str, stopped: str | None, reason: str, sequence: str | None) -> None:
    message, _ = answer(Piece(0, "A", finish_reason=ended, stop_reason=stopped))
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def answer(*pieces: Piece) -> tuple[JSON, list[JSON]]:
    builder = MessageBuilder("msg-1", "m", 3)
    events = list(builder.begin())
    for piece in pieces:
        events += builder.feed(piece)
    details = {"cached_tokens": 1}
    builder.count({"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": details})
    events += builder.finish()
    assert builder.message["usage"]["input_tokens"] == 2
    return builder.message, events
