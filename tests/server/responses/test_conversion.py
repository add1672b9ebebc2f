"""Responses requests as chat requests, and chat answers as Responses answers, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from enginewright.runtime import SamplingParams
from enginewright.runtime.errors import RequestError
from enginewright.server.responses.answer import ResponseBuilder
from enginewright.server.responses.request import ResponsesRequest
from enginewright.server.serving.pieces import Piece
from enginewright.server.tools.parser import ToolCallDelta

JSON = dict[str, Any]


def chat(given: Any, **fields: Any) -> JSON:
    return (
        ResponsesRequest(input=given, **fields)
        .to_chat()
        .model_dump(exclude_unset=True, by_alias=True)
    )


def test_text_and_instructions() -> None:
    assert chat("Hi", instructions="Be brief.", max_output_tokens=5, temperature=0) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ],
        "max_completion_tokens": 5,
        "temperature": 0,
    }


def test_a_turn_with_thoughts_and_calls_is_one_message() -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Use tools."}]},
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x":1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "r"}],
        },
    ]
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert chat(items, instructions="Be brief.")["messages"] == [
        {"role": "system", "content": "Be brief.\n\nUse tools."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "reasoning": "Hm.", "content": "A", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "tool", "tool_call_id": "c2", "content": "r"},
    ]


def test_tools_and_forms() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    body = chat(
        "Hi", tools=[tool], tool_choice={"type": "function", "name": "f"}, text={"format": form}
    )
    function = {"name": "f", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"input": [{"type": "image_generation_call"}]},
            r"input\[0\].type='image_generation_call'",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "takes text only"),
        ({"input": [{"role": "user"}]}, r"input\[0\].content=None"),
        ({"input": [{"content": "x"}]}, r"input\[0\].role=None"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, r"tools\[0\].type='web_search'"),
    ],
)
def test_what_is_not_served_is_named(fields: JSON, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        ResponsesRequest(**fields).to_chat()


@pytest.mark.parametrize("field", ["store", "background", "previous_response_id", "truncation"])
def test_fields_without_an_effect_here_are_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        ResponsesRequest(input="x", **{field: "auto" if field == "truncation" else True})


def test_a_stream_and_a_whole_answer_hold_the_same() -> None:
    f, g = ToolCallDelta(0, "c1", "f", ""), ToolCallDelta(1, "c2", "g", "{}")
    pieces = [
        Piece(0, reasoning="H"),
        Piece(0, reasoning="m."),
        Piece(0, "It is "),
        Piece(0, "sunny."),
        Piece(0, calls=(f,)),
        Piece(0, calls=(ToolCallDelta(0, arguments='{"x":'),)),
        Piece(0, calls=(ToolCallDelta(0, arguments="1}"), g), finish_reason="tool_calls"),
    ]
    calls = (ToolCallDelta(0, "c1", "f", '{"x":1}'), g)
    streamed, events = answer(*pieces)
    whole, _ = answer(Piece(0, "It is sunny.", "Hm.", calls, finish_reason="tool_calls"))
    assert plain(streamed["output"]) == plain(whole["output"])
    assert [item["type"] for item in whole["output"]] == [
        "reasoning", "message", "function_call", "function_call"
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"] == streamed["output"]
    text = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert text == ["It is ", "sunny."]


def test_an_answer_that_was_cut_is_incomplete() -> None:
    cut, events = answer(Piece(0, "It is", finish_reason="length"))
    assert cut["status"] == cut["output"][0]["status"] == "incomplete"
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-1]["type"] == "response.incomplete"


def answer(*pieces: Piece) -> tuple[JSON, list[JSON]]:
    call: Any = SimpleNamespace(id="resp-1", name="m", created=1, params=SamplingParams())
    builder = ResponseBuilder(ResponsesRequest(input="x"), call)
    events = list(builder.begin())
    for piece in pieces:
        events += builder.feed(piece)
    builder.count({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})
    events += builder.finish()
    return builder.response, events


def plain(output: list[JSON]) -> list[JSON]:
    return [{name: value for name, value in item.items() if name != "id"} for item in output]
