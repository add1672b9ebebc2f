"""The server around the endpoints: models, tokenizer, keys, limits, metrics, documents."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from pathlib import Path
from typing import Any

import openai
import pytest

from enginewright.runtime import LLM
from enginewright.server.auth import ENVIRONMENT
from tests.server.conftest import Running, Serve, running

USER = [{"role": "user", "content": "hi"}]


def call(
    server: Running, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = None if body is None else json.dumps(body).encode()
    connection.request(method, path, content, {"content-type": "application/json", **named})
    answer = connection.getresponse()
    found = answer.status, {name.lower(): each for name, each in answer.getheaders()}, answer.read()
    connection.close()
    return found


def get(server: Running, path: str, **headers: str) -> Any:
    status, _, text = call(server, "GET", path, **headers)
    assert status == 200, text
    return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()


def test_models_have_cards_under_each_name(client: openai.OpenAI) -> None:
    cards = client.models.list().data

    assert [card.id for card in cards] == ["tiny", "alias"]
    assert client.models.retrieve("alias").model_dump()["root"] == "tiny"
    assert cards[0].model_dump()["max_model_len"] == 600
    with pytest.raises(openai.NotFoundError, match="`other` does not exist"):
        client.models.retrieve("other")


def test_an_answer_has_the_first_name_whichever_was_asked_for(
    server: Running, client: openai.OpenAI
) -> None:
    asked: Any = {"model": "alias", "messages": USER, "max_tokens": 1}
    assert client.completions.create(model="alias", prompt="a", max_tokens=1).model == "tiny"
    assert client.chat.completions.create(**asked).model == "tiny"
    assert {each.model for each in client.chat.completions.create(**asked, stream=True)} == {"tiny"}
    assert client.responses.create(model="alias", input="a", max_output_tokens=1).model == "tiny"
    assert json.loads(call(server, "POST", "/v1/messages", asked)[2])["model"] == "tiny"


def test_the_path_of_all_models_with_a_slash_is_none(server: Running) -> None:
    status, _, text = call(server, "GET", "/v1/models/")

    assert (status, json.loads(text)["error"]["type"]) == (404, "NotFoundError")


def test_several_artifacts_under_their_names(tiny_artifact: Path) -> None:
    models = [
        {"model": str(tiny_artifact), "served_model_name": "one", "threads": 1},
        {"model": str(tiny_artifact), "served_model_name": "two", "max_model_len": 64},
    ]
    with running(models) as server, server.client() as client:
        cards = {card.id: card.model_dump()["max_model_len"] for card in client.models.list().data}
        assert cards == {"one": 600, "two": 64}
        for name in cards:
            assert client.completions.create(model=name, prompt="a", max_tokens=1).model == name
        with pytest.raises(openai.BadRequestError, match="several are served: one, two"):
            client.completions.create(model="", prompt="a")


def test_one_model_needs_no_name_and_is_not_known_by_its_path(
    serve: Serve, tiny_artifact: Path
) -> None:
    with serve() as server, server.client() as client:
        assert client.completions.create(model="", prompt="a", max_tokens=1).model == "tiny"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.completions.create(model=str(tiny_artifact), prompt="a", max_tokens=1)
        assert [card.id for card in client.models.list().data] == ["tiny"]


def test_tokenize_and_back(server: Running, offline: LLM) -> None:
    text = "Call me Ishmael. Él"
    ids = offline.get_tokenizer().encode(text)
    status, _, answer = call(
        server, "POST", "/tokenize", {"prompt": text, "return_token_strs": True}
    )
    found = json.loads(answer)

    assert status == 200
    assert found["tokens"] == ids
    assert found["count"] == len(ids)
    assert found["max_model_len"] == 600
    assert len(found["token_strs"]) == len(ids)
    _, _, answer = call(server, "POST", "/detokenize", {"model": "tiny", "tokens": ids})
    assert json.loads(answer) == {"prompt": text}


def test_a_conversation_is_tokenized_as_chat_does(server: Running, client: openai.OpenAI) -> None:
    _, _, answer = call(server, "POST", "/tokenize", {"messages": USER})
    asked: Any = USER
    chat = client.chat.completions.create(model="tiny", messages=asked, max_tokens=1)

    assert chat.usage is not None
    assert json.loads(answer)["count"] == chat.usage.prompt_tokens


def test_what_a_remote_tokenizer_asks(server: Running) -> None:
    info = get(server, "/tokenizer_info")

    assert (info["bos_token"], info["eos_token"]) == ("<s>", "</s>")
    assert "message.role" in info["chat_template"]
    assert info["model_max_length"] == 600


def test_health_readiness_version_and_documents(server: Running) -> None:
    assert call(server, "GET", "/health")[0] == 200
    assert call(server, "GET", "/ready")[0] == 200
    for path in ("/health", "/ready"):
        assert call(server, "HEAD", path)[::2] == (200, b"")
    assert get(server, "/version")["version"]
    paths = get(server, "/openapi.json")["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize"} <= set(paths)
    for path in paths.values():
        for operation in path.values():
            assert "422" not in operation["responses"]
    assert "swagger" in get(server, "/docs").lower()


def test_metrics_count_what_ran(serve: Serve) -> None:
    with serve(served_model_name="tiny") as server, server.client() as client:
        extra = {"ignore_eos": True}
        client.completions.create(model="tiny", prompt=[5] * 40, max_tokens=7, extra_body=extra)
        client.completions.create(model="tiny", prompt=[5] * 40, max_tokens=7, extra_body=extra)
        text = get(server, "/metrics")
    values = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
    )

    def value(name: str, labels: str = "") -> float:
        return float(values[f'enginewright:{name}{{{labels}model_name="tiny"}}'])

    assert value("prompt_tokens_total") == 80
    assert value("generation_tokens_total") == 14
    assert value("request_success_total", 'finished_reason="length",') == 2
    assert value("prefix_cache_hits_total") >= 32
    assert value("e2e_request_latency_seconds_count") == 2
    assert value("time_to_first_token_seconds_count") == 2
    assert value("num_requests_running") == 0
    assert value("model_load_seconds") > 0
    assert value("engine_up") == 1


def test_keys(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("from-a-file\n\n  spaced \n")
    monkeypatch.setenv(ENVIRONMENT, "from,environment")
    given = {"api_key": ["given"], "api_key_file": str(tmp_path / "keys")}
    with serve(served_model_name="tiny", **given) as server:
        for key in ("given", "from-a-file", "spaced", "from", "environment"):
            with server.client(api_key=key) as client:
                assert client.models.list().data
            assert call(server, "GET", "/v1/models", x_api_key=key)[0] == 200
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "given"}):
            status, _, text = call(server, "GET", "/v1/models", **headers)
            assert (status, json.loads(text)) == (401, {"error": "Unauthorized"})
        with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        for path in ("/tokenize", "/detokenize"):
            assert call(server, "POST", path, {})[0] == 401
        for path in ("/health", "/ready", "/metrics", "/version"):
            assert call(server, "GET", path)[0] == 200


def test_no_page_of_another_origin_may_call_unless_it_is_named(serve: Serve) -> None:
    asked = {"origin": "http://page.test", "access_control_request_method": "POST"}
    with serve() as server:
        assert "access-control-allow-origin" not in call(server, "GET", "/version", **asked)[1]
    with serve(allowed_origins=["http://page.test"], api_key="k") as server:
        status, headers, _ = call(server, "OPTIONS", "/v1/completions", **asked)
        assert status == 200
        assert headers["access-control-allow-origin"] == "http://page.test"
        _, headers, _ = call(server, "GET", "/v1/models", **asked)
        assert headers["access-control-allow-origin"] == "http://page.test"
        other = {**asked, "origin": "http://other.test"}
        assert "access-control-allow-origin" not in call(server, "GET", "/version", **other)[1]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(serve: Serve, chunked: bool) -> None:
    with serve(max_body_bytes=1000) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body = json.dumps({"prompt": "a" * 2000}).encode()
        parts = iter([body[:900], body[900:]]) if chunked else body
        connection.request(
            "POST",
            "/v1/completions",
            parts,
            {"content-type": "application/json"},
            encode_chunked=chunked,
        )
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
        connection.close()
        assert (answer.status, error["code"], error["type"]) == (413, 413, "RequestTooLargeError")


@pytest.mark.parametrize("limit", [{"body_timeout": 0.3}, {"request_timeout": 0.3}])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/tokenize"])
def test_a_body_that_does_not_come(serve: Serve, limit: dict[str, float], path: str) -> None:
    with (
        serve(**limit) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection,
    ):
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        with http.client.HTTPResponse(connection) as answer:
            answer.begin()
            error = json.loads(answer.read())["error"]
        assert connection.recv(1) == b""  # and the connection is closed
    assert answer.status == 408
    assert error["message"] == "the body did not come within 0.3 seconds"


def test_an_answer_may_take_longer_than_its_body(serve: Serve) -> None:
    with serve(served_model_name="tiny", body_timeout=0.05) as server:
        body = {"prompt": "a", "max_tokens": 590, "ignore_eos": True, "stream": True}
        status, _, text = call(server, "POST", "/v1/completions", body)
    assert status == 200
    assert text.endswith(b"data: [DONE]\n\n")
    assert b'"error"' not in text


def test_a_full_queue_answers_503_with_retry_after(serve: Serve) -> None:
    limits = {"max_num_seqs": 1, "max_num_queued_reqs": 1, "served_model_name": "tiny"}
    with serve(**limits) as server, server.client() as client:
        extra = {"ignore_eos": True}
        long = {"model": "tiny", "prompt": "a", "max_tokens": 590, "extra_body": extra}
        with client.completions.create(stream=True, **long) as stream:
            next(iter(stream))
            with pytest.raises(openai.InternalServerError, match="try again") as raised:
                client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=1)
            assert raised.value.status_code == 503
            assert raised.value.response.headers["retry-after"] == "1"
            again = server.client(max_retries=20)
        assert again.completions.create(model="tiny", prompt=["a", "b"], max_tokens=1).choices
        again.close()
        alone = client.completions.create(model="tiny", prompt=["a", "b", "c"], max_tokens=1)
        assert len(alone.choices) == 3
        assert "admission_rejections_total" in get(server, "/metrics")


def test_requests_that_wait_to_be_read_are_bounded_too(serve: Serve) -> None:
    with serve(served_model_name="tiny") as server, server.client(max_retries=0) as client:
        (model,) = server.models
        model.preparing = model.capacity
        with pytest.raises(openai.InternalServerError, match=r"being read.*try again") as raised:
            client.completions.create(model="tiny", prompt="a", max_tokens=1)
        assert raised.value.status_code == 503
        model.preparing = 0
        assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices
        assert model.preparing == 0


def test_limits_of_prompts_and_n(serve: Serve) -> None:
    with (
        serve(max_prompts=2, max_n=2, served_model_name="tiny") as server,
        server.client() as client,
    ):
        with pytest.raises(openai.BadRequestError, match="takes 2 at once"):
            client.completions.create(model="tiny", prompt=["a"] * 3)
        with pytest.raises(openai.BadRequestError, match="integer from 1 to 2"):
            client.completions.create(model="tiny", prompt="a", n=3)


def test_a_template_of_a_request_is_taken_only_where_it_is_trusted(
    serve: Serve, tmp_path: Path, client: openai.OpenAI
) -> None:
    asked: Any = {"model": "tiny", "messages": USER, "max_tokens": 1}
    secret = tmp_path / "secret.jinja"
    secret.write_text("a b c d e f g h")
    with pytest.raises(openai.BadRequestError, match="trust_request_chat_template"):
        client.chat.completions.create(extra_body={"chat_template": "hello"}, **asked)
    with (
        serve(served_model_name="tiny", trust_request_chat_template=True) as server,
        server.client() as trusting,
    ):
        for template in ("hello", str(secret)):  # the path is text like any other
            body = {"chat_template": template}
            found = trusting.chat.completions.create(extra_body=body, **asked)
            _, _, text = call(server, "POST", "/tokenize", {"prompt": template})
            assert found.usage is not None
            assert found.usage.prompt_tokens == json.loads(text)["count"]


def test_the_models_defaults_are_those_of_the_server(serve: Serve, offline: LLM) -> None:
    override = {"temperature": 0.0, "max_new_tokens": 3}
    with (
        serve(served_model_name="tiny", override_generation_config=override) as server,
        server.client() as client,
    ):
        answers = [
            client.completions.create(model="tiny", prompt="Call", max_tokens=50).choices[0]
            for _ in range(3)
        ]
        chat: Any = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}], temperature=1, n=2
        )
    assert len({each.text for each in answers}) == 1
    assert chat.usage.completion_tokens <= 6


def test_a_line_a_request_without_its_prompt(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serve(served_model_name="tiny", enable_request_id_headers=True) as server:
        body = {"prompt": "a very secret text", "max_tokens": 2, "ignore_eos": True}
        _, headers, text = call(server, "POST", "/v1/completions", body, x_request_id="mine-1")
    line = next(each.message for each in caplog.records if "mine-1" in each.message)

    assert headers["x-request-id"] == "mine-1"
    assert json.loads(text)["id"] == "cmpl-mine-1"
    assert "POST /v1/completions 200 id=mine-1 model=tiny" in line
    assert "output=2" in line
    assert "secret" not in caplog.text


def test_no_client_writes_a_line_of_its_own_into_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serve(enable_log_requests=True) as server:
        call(server, "GET", "/x%0a2026%20FAKE%1b[31m")
        body = {"prompt": "a", "max_tokens": 1, "request_id": "a\nb\x1b[31m"}
        call(server, "POST", "/v1/completions", body)
    lines = [each.getMessage() for each in caplog.records]

    assert any(line.startswith("GET /x%0A2026%20FAKE%1B[31m 404 ") for line in lines)
    assert any(line.startswith("cmpl-a%0Ab%1B[31m: ") for line in lines)
    assert all(line.isprintable() for line in lines if "FAKE" in line or "cmpl-a" in line)


def test_what_is_turned_off_is_not_there(serve: Serve) -> None:
    off = {"disable_docs": True, "enable_tokenizer_info_endpoint": False, "fingerprint": "none"}
    with serve(**off) as server:
        for path in ("/docs", "/openapi.json", "/tokenizer_info"):
            assert call(server, "GET", path)[0] == 404
        _, _, text = call(server, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert "system_fingerprint" not in json.loads(text)


def test_what_the_cache_had_is_told_where_that_is_asked_for(serve: Serve) -> None:
    with (
        serve(served_model_name="tiny", enable_prompt_tokens_details=True) as server,
        server.client() as client,
    ):
        asked: Any = {"model": "tiny", "prompt": [7] * 70, "max_tokens": 1}
        client.completions.create(**asked)
        again = client.completions.create(**asked)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) >= 32
