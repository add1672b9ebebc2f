"""POST /v1/messages, by Anthropic's own client."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from enginewright.runtime import LLM, SamplingParams

anthropic = pytest.importorskip("anthropic", reason="the package anthropic is not installed")

USER: Any = [{"role": "user", "content": "Hi"}]
TOOL: Any = {
    "name": "look",
    "input_schema": {
        "type": "object",
        "properties": {"x": {"enum": [1, 2]}},
        "required": ["x"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def claude(server: Any) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as found:
        yield found


def test_the_answer_is_that_of_the_offline_api(claude: Any, offline: LLM) -> None:
    more = {"seed": 3, "temperature": 1}
    answer = claude.messages.create(model="tiny", messages=USER, max_tokens=9, extra_body=more)
    expected = offline.chat(USER, SamplingParams(max_tokens=9, seed=3), use_tqdm=False)[0]

    assert answer.content[0].text == expected.outputs[0].text
    assert answer.stop_reason == ("max_tokens" if answer.usage.output_tokens == 9 else "end_turn")
    assert answer.usage.input_tokens == len(expected.prompt_token_ids)


def test_the_stream_ends_with_what_a_whole_answer_is(claude: Any) -> None:
    asked: Any = {"model": "tiny", "messages": USER, "max_tokens": 9, "extra_body": {"seed": 3}}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert text == final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == whole.stop_reason


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_a_demanded_call_and_its_result(claude: Any, choice: Any) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 200, "tools": [TOOL], "tool_choice": choice}
    asked["extra_body"] = {"seed": 3}
    answer = claude.messages.create(messages=USER, **asked)
    use = answer.content[0]
    assert (use.type, answer.stop_reason) == ("tool_use", "tool_use")
    assert use.input["x"] in (1, 2)
    with claude.messages.stream(messages=USER, **asked) as stream:
        assert stream.get_final_message().content[0].input["x"] in (1, 2)

    results = [
        {"type": "tool_result", "tool_use_id": each.id, "content": "a cat"}
        for each in answer.content
    ]
    turns: Any = [
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": results},
    ]
    told = claude.messages.create(model="tiny", max_tokens=3, messages=[*USER, *turns])
    assert told.usage.input_tokens > answer.usage.input_tokens


def test_tokens_are_counted_as_they_are_used(claude: Any) -> None:
    system = "Be brief."
    counted = claude.messages.count_tokens(model="tiny", messages=USER, system=system)
    answer = claude.messages.create(model="tiny", messages=USER, system=system, max_tokens=1)
    assert counted.input_tokens == answer.usage.input_tokens


def test_errors_have_the_shape_of_the_api(claude: Any) -> None:
    image: Any = [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}}]
    with pytest.raises(anthropic.BadRequestError, match="takes text only") as caught:
        claude.messages.create(
            model="tiny", max_tokens=3, messages=[{"role": "user", "content": image}]
        )
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="other", max_tokens=3, messages=USER)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model="tiny", max_tokens=0, messages=USER)


def test_a_key_in_anthropics_header(serve: Any) -> None:
    with serve(api_key=["secret"]) as running:
        with (
            anthropic.Anthropic(base_url=running.url, api_key="other", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError),
        ):
            client.messages.count_tokens(model="tiny", messages=USER)
        with anthropic.Anthropic(base_url=running.url, api_key="secret", max_retries=0) as client:
            assert client.messages.count_tokens(model="tiny", messages=USER).input_tokens


def test_every_error_of_the_path_has_the_shape_of_the_api(serve: Any) -> None:
    body = json.dumps({"model": "tiny", "max_tokens": 1, "messages": USER * 50}).encode()
    with serve(served_model_name="tiny", api_key=["secret"], max_body_bytes=100) as running:
        for method, content, key, status, kind in (
            ("POST", b"{}", "other", 401, "authentication_error"),
            ("GET", None, "secret", 405, "invalid_request_error"),
            ("POST", body, "secret", 413, "request_too_large"),
            ("POST", iter([body]), "secret", 413, "request_too_large"),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
            headers = {"x-api-key": key, "content-type": "application/json"}
            connection.request(method, "/v1/messages", content, headers)
            answer = connection.getresponse()
            told = json.loads(answer.read())
            connection.close()
            assert (answer.status, told["type"], told["error"]["type"]) == (status, "error", kind)


@pytest.mark.parametrize("stream", [False, True])
def test_a_final_message_of_the_assistant_is_continued(
    claude: Any, offline: LLM, stream: bool
) -> None:
    turns: Any = [*USER, {"role": "assistant", "content": "The answer is"}]
    asked: Any = {"model": "tiny", "messages": turns, "max_tokens": 9, "extra_body": {"seed": 3}}
    if stream:
        with claude.messages.stream(**asked) as events:
            answer = events.get_final_message()
    else:
        answer = claude.messages.create(**asked)
    how: Any = {"add_generation_prompt": False, "continue_final_message": True, "use_tqdm": False}
    (expected,) = offline.chat(turns, SamplingParams(max_tokens=9, seed=3), **how)

    assert answer.id.startswith("msg_")
    assert answer.usage.input_tokens == len(expected.prompt_token_ids)
    assert answer.content[0].text == expected.outputs[0].text
    counted = claude.messages.count_tokens(model="tiny", messages=turns)
    assert counted.input_tokens == answer.usage.input_tokens


def test_thoughts_are_refused_of_a_model_without_them(claude: Any, serve: Any) -> None:
    body = {"model": "tiny", "max_tokens": 1, "messages": USER, "thinking": {"type": "enabled"}}
    assert claude.messages.create(**body).id
    with (
        serve(served_model_name="tiny", reasoning_parser="none") as running,
        anthropic.Anthropic(base_url=running.url, api_key="any", max_retries=0) as client,
        pytest.raises(anthropic.BadRequestError, match="tiny has no thoughts"),
    ):
        client.messages.create(**body)
