"""Every way in which a request can be wrong, in one table: status, shape, and the field's name."""

from __future__ import annotations

import http.client
import json
import logging
import re
from typing import Any

import openai
import pytest

from tests.server.conftest import Running, Serve

USER = [{"role": "user", "content": "hi"}]
NO_TYPE = {"type": "nothing"}
FORM_OF_NOTHING = {"type": "json_schema", "json_schema": {"name": "a", "schema": NO_TYPE}}
BAD_TOOL = {"type": "function", "function": {"name": "f", "parameters": NO_TYPE}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}
FILE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}

COMPLETIONS: list[tuple[dict[str, Any], str | None]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({"prompt": {"prompt": "a"}}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [10_000]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": ["a"] * 1025}, "prompt"),
    ({"prompt": "a" * 3000}, None),
    ({}, "prompt"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 1e400}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 2, "temperature": 0}, "n"),
    ({"prompt": ["a"] * 100, "n": 100}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 600}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"logprobs": -2}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"prompt_logprobs": -2}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options"),
    ({"stop": [""]}, "stop"),
    ({"stop": 5}, "stop"),
    ({"seed": 2**70}, "seed"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"stop_token_ids": [99999]}, "stop_token_ids"),
    ({"bad_words": [""]}, "bad_words"),
    ({"best_of": 3}, "best_of"),
    ({"suffix": "end"}, "suffix"),
    ({"priority": 3}, "priority"),
    ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    ({"cache_salt": "a"}, "cache_salt"),
    ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
    ({"watermarking": True}, "watermarking"),
    ({"guided_json": {"type": "object"}}, "guided_json"),
    ({"logits_processors": ["os:system"]}, "logits_processors"),
    ({"spaces_between_special_tokens": False}, "spaces_between_special_tokens"),
    ({"thinking_token_budget": 5}, "thinking_token_budget"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"length_penalty": 2.0}, "length_penalty"),
    ({"use_beam_search": True, "echo": True, "logprobs": 1}, "logprobs"),
    ({"use_beam_search": True, "n": 100}, None),
    ({"use_beam_search": True, "logit_bias": {"5": 1}}, "logit_bias"),
    ({"repetition_detection": {"size": 1}}, "repetition_detection"),
    ({"repetition_detection": {"max_pattern_size": "a"}}, "repetition_detection"),
    ({"response_format": FORM_OF_NOTHING}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format"),
    ({"structured_outputs": {"json": {"type": "object"}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
    ({"structured_outputs": {"spell": 1}}, "structured_outputs"),
    ({"structured_outputs": {}}, "structured_outputs"),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "response_format",
    ),
]
CHATS: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"content": "hi"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages"),
    ({"messages": [{"role": "user", "content": [FILE]}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"),
    ({"messages": ["hi"]}, "messages"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 600}, "max_completion_tokens"),
    ({"max_tokens": 600}, "max_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 5.5}, "logprobs"),
    ({"tools": []}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": [{"type": "web", "function": {"name": "a"}}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
    ),
    (
        {"tools": [TOOL], "tool_choice": "required", "structured_outputs": {"regex": "a"}},
        "structured_outputs",
    ),
    ({"reasoning_effort": "bogus"}, "reasoning_effort"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"audio": {"voice": "a"}}, "audio"),
    ({"web_search_options": {"a": 1}}, "web_search_options"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"chat_template_kwargs": {"chat_template": "a"}}, None),
    ({"continue_final_message": True}, "add_generation_prompt"),
    ({"response_format": FORM_OF_NOTHING}, "response_format"),
    ({"tools": [BAD_TOOL], "tool_choice": "required"}, "tools"),
    ({"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs"),
]


OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/responses", {"max_output_tokens": 0}, "max_output_tokens"),
    ("/v1/responses", {"input": []}, "input"),
    ("/v1/responses", {"text": {"format": {"type": "xml"}}}, "text"),
    ("/v1/responses", {"top_logprobs": 50}, "top_logprobs"),
]


def post(
    server: Running, path: str, body: bytes | dict[str, Any], kind: str = "application/json"
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, content, {"content-type": kind})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


def check(status: int, answer: Any, param: str | None, kind: str = "BadRequestError") -> None:
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (status, status, kind)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"]
    assert "Traceback" not in answer["error"]["message"]
    if param is not None:
        assert answer["error"]["param"] == param, answer


@pytest.mark.parametrize(("body", "param"), COMPLETIONS)
def test_completions_that_are_wrong(
    server: Running, body: dict[str, Any], param: str | None
) -> None:
    with_prompt = body if not body or "prompt" in body else {"prompt": "hello", **body}
    for stream in (False, True):
        asked = {"stream": stream, **with_prompt}
        status, answer = post(server, "/v1/completions", {"model": "tiny", **asked})
        assert status == 400, answer
        check(status, answer, param)


@pytest.mark.parametrize(("path", "body", "param"), OTHERS)
def test_fields_have_the_names_of_the_api(
    server: Running, path: str, body: dict[str, Any], param: str
) -> None:
    status, answer = post(server, path, {"model": "tiny", "input": "Hi", **body})
    check(status, answer, param)
    assert re.search(rf"\b{param}\b", answer["error"]["message"])


def test_messages_name_their_own_fields(server: Running) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    for body, name in (({"max_tokens": 10**9}, "max_tokens"), ({"stop_sequences": [""]}, "stop_s")):
        status, answer = post(server, "/v1/messages", asked | body)
        assert status == 400
        assert answer["error"]["message"].startswith(name)


@pytest.mark.parametrize(("body", "param"), CHATS)
def test_chats_that_are_wrong(server: Running, body: dict[str, Any], param: str | None) -> None:
    for stream in (False, True):
        asked = {"model": "tiny", "stream": stream, "messages": USER, **body}
        status, answer = post(server, "/v1/chat/completions", asked)
        assert status == 400, answer
        check(status, answer, param)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", b"", 400),
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"[]", 400),
        ("/v1/completions", b"\xff\xfe", 400),
        ("/v1/completions", b"[" * 100_000, 400),
        ("/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400),
        ("/v1/completions", b'{"prompt": "a", "model": "none"}', 404),
        ("/v1/chat/completions", b'{"messages": [], "model": "no/such"}', 404),
        ("/tokenize", b"{}", 400),
        ("/tokenize", b'{"prompt": "a", "messages": []}', 400),
        ("/tokenize", b'{"messages": [{"role": "user"}]}', 400),
        ("/detokenize", b'{"tokens": [100000]}', 400),
        ("/detokenize", b'{"tokens": ["a"]}', 400),
        ("/nowhere", b"{}", 404),
        ("/v1/models", b"{}", 405),
    ],
)
def test_bodies_names_and_paths_that_are_wrong(
    server: Running, path: str, body: bytes, status: int
) -> None:
    found, answer = post(server, path, body)

    assert found == status, answer
    kinds = {400: "BadRequestError", 404: "NotFoundError", 405: "MethodNotAllowedError"}
    check(found, answer, None, kinds[status])


def test_a_body_of_another_kind(server: Running) -> None:
    body = json.dumps({"model": "tiny", "prompt": "a"}).encode()
    status, answer = post(server, "/v1/completions", body, "text/plain")

    assert status == 400
    check(status, answer, None)
    for wrong, told in ((body, "text/plain"), (b"[1]", "application/json")):
        message = post(server, "/v1/completions", wrong, told)[1]["error"]["message"]
        assert message.startswith("the body must be a JSON object")


def test_half_a_surrogate_pair_is_no_failure(server: Running) -> None:
    body = b'{"model": "tiny", "prompt": "a\\ud800b", "echo": true, "max_tokens": 2}'
    status, answer = post(server, "/v1/completions", body)

    assert status == 200, answer


def test_unknown_fields_are_ignored(server: Running) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1, "colour": "red", "user": "me"}

    assert post(server, "/v1/completions", body)[0] == 200


def test_many_unknown_fields_are_one_line_of_the_log(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    body = {f"colour{number}": 1 for number in range(1000)}

    assert post(server, "/v1/completions", {"prompt": "a", "max_tokens": 1, **body})[0] == 200
    (line,) = [each.getMessage() for each in caplog.records if "colour" in each.getMessage()]
    assert line.endswith("'colour3', 'colour4' and 995 more")


def test_the_client_raises_by_class(server: Running, serve: Serve) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="a", temperature=9)
    with pytest.raises(openai.NotFoundError, match="`other` does not exist"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError, match="temperature") as raised:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}], temperature=9, stream=True
        )
    assert raised.value.param == "temperature"
    client.close()
