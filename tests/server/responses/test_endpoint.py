"""POST /v1/responses, by OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from enginewright.runtime import LLM, SamplingParams

TOOL: Any = {
    "type": "function",
    "name": "look",
    "parameters": {
        "type": "object",
        "properties": {"x": {"enum": [1, 2]}},
        "required": ["x"],
        "additionalProperties": False,
    },
}


def test_the_answer_is_that_of_the_offline_api(client: openai.OpenAI, offline: LLM) -> None:
    answer = client.responses.create(
        model="tiny", input="Hi", max_output_tokens=9, temperature=1, extra_body={"seed": 3}
    )
    messages = [{"role": "user", "content": "Hi"}]
    expected = offline.chat(messages, SamplingParams(max_tokens=9, seed=3), use_tqdm=False)[0]

    assert answer.output_text == expected.outputs[0].text
    assert answer.id.startswith("resp_")
    assert answer.usage is not None
    assert answer.usage.input_tokens == len(expected.prompt_token_ids)
    assert answer.usage.output_tokens == len(expected.outputs[0].token_ids)
    assert answer.status == ("incomplete" if answer.usage.output_tokens == 9 else "completed")


def test_the_stream_ends_with_what_a_whole_answer_is(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "input": "Hi", "max_output_tokens": 9, "extra_body": {"seed": 3}}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
    kinds, final = [event.type for event in events], events[-1].response  # type: ignore[union-attr]

    assert final.output_text == whole.output_text
    assert final.usage == whole.usage
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == f"response.{whole.status}"


def test_a_demanded_call_and_its_result(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "tools": [TOOL], "tool_choice": "required", "temperature": 0}
    given: list[Any] = [{"role": "user", "content": "Look."}]
    answer = client.responses.create(input=given, **asked)
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls
    assert all(json.loads(call.arguments)["x"] in (1, 2) for call in calls)

    with client.responses.stream(input=given, **asked) as stream:
        streamed = stream.get_final_response()
    assert any(item.type == "function_call" for item in streamed.output)

    given += answer.output
    for call in calls:
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "a cat"}
        given.append(result)
    told = client.responses.create(model="tiny", input=given, max_output_tokens=3)
    assert told.usage is not None
    assert told.usage.input_tokens > answer.usage.input_tokens  # type: ignore[union-attr]


class Choice(BaseModel):
    """What the answer must be."""

    word: Literal["cat", "dog"]


def test_parsed_into_a_model(client: openai.OpenAI) -> None:
    for seed in range(20):  # a random model may go on with white space until it is cut
        answer = client.responses.parse(
            model="tiny", input="Hi", text_format=Choice, extra_body={"seed": seed}
        )
        if answer.status == "completed":
            break
    assert answer.output_parsed is not None
    assert answer.output_parsed.word in ("cat", "dog")


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="tiny",
        input="Hi",
        max_output_tokens=4,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
        extra_body={"seed": 3},
    )
    text: Any = answer.output[0].content[0]  # type: ignore[union-attr]
    assert all(len(each.top_logprobs) == 2 for each in text.logprobs)
    assert len(text.logprobs) == answer.usage.output_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "store": True}, "store"),
        ({"input": "x", "temperature": 9}, "temperature"),
        ({"input": "x", "n": 2}, "n"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools"),
        ({"input": 7}, "input"),
    ],
)
def test_a_mistake_is_a_400_that_names_the_field(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(input=None, model="tiny", extra_body=fields)
    assert caught.value.param == param


def test_nothing_is_stored(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server stores none"):
        client.responses.retrieve("resp_1")


def test_what_is_to_be_included_must_be_known(client: openai.OpenAI) -> None:
    unknown: Any = ["wat"]
    with pytest.raises(openai.BadRequestError, match=r"message\.output_text\.logprobs") as raised:
        client.responses.create(model="tiny", input="Hi", include=unknown)
    assert raised.value.param == "include"
    known: Any = ["reasoning.encrypted_content"]
    assert client.responses.create(model="tiny", input="Hi", max_output_tokens=1, include=known).id
