"""The bytes of a stream, by a raw socket; readers that go away, are slow, or see an error."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from enginewright.runtime import LLM, SamplingParams
from tests.server.conftest import Running, Serve

USER = [{"role": "user", "content": "hi"}]
LONG = {"model": "tiny", "prompt": "hi", "max_tokens": 500, "ignore_eos": True, "stream": True}


@contextmanager
def asked(server: Running, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as found:
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        found.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        yield found


def everything(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head and the body of an answer in chunks, without their lengths."""
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        data += connection.recv(65536)
    head, _, rest = data.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return head, body


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come; the bound is there to end a test that is lost."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def stats(server: Running) -> Any:
    model = next(iter(server.models))
    return asyncio.run(model.engine.stats())


def test_the_events_of_a_chat(server: Running) -> None:
    body = {"model": "tiny", "messages": USER, "max_tokens": 4, "seed": 1, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
    with asked(server, "/v1/chat/completions", body) as connection:
        head, text = everything(connection)

    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"content-type: text/event-stream; charset=utf-8" in head.lower()
    events = text.split(b"\n\n")
    assert events[-1] == b""
    assert events[-2] == b"data: [DONE]"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert all(event.startswith(b"data: {") for event in events[:-2])
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4


def test_text_beyond_ascii_comes_whole(server: Running, offline: LLM) -> None:
    """Bytes of a character that come one by one are told once it is complete."""
    ids = offline.get_tokenizer().encode("é", add_special_tokens=False)
    bias = {str(token): 100 for token in ids}
    body = {**LONG, "max_tokens": 12, "logit_bias": bias, "seed": 1}
    with asked(server, "/v1/completions", body) as connection:
        _, text = everything(connection)
    params = SamplingParams(
        max_tokens=12, ignore_eos=True, seed=1, logit_bias=dict.fromkeys(ids, 100.0)
    )
    (expected,) = offline.generate("hi", params, use_tqdm=False)

    events = [json.loads(each[6:]) for each in text.decode().split("\n\n")[:-2]]
    assert "".join(each["choices"][0]["text"] for each in events) == expected.outputs[0].text
    assert "\\u" not in text.decode()


def test_a_reader_that_goes_away_frees_its_slot_within_a_step(serve: Serve) -> None:
    with serve(served_model_name="tiny") as server:
        model = next(iter(server.models))
        engine = model.engine
        for path, extra in (("/v1/completions", {}), ("/v1/chat/completions", {"messages": USER})):
            for stream in (True, False):
                with asked(server, path, {**LONG, **extra, "stream": stream}) as connection:
                    until(lambda: stats(server).running == 1)
                    if stream:
                        connection.recv(100)
                until(lambda: model.unfinished == 0)  # the loop has heard of it
                # What is asked of the engine's thread after the abort comes after it: no step of
                # the request lies between.
                assert stats(server).running == 0
                assert stats(server).waiting == 0
        assert engine.is_running


def test_an_abandoned_openai_stream_frees_its_slot(server: Running, client: openai.OpenAI) -> None:
    body = {"ignore_eos": True}
    with client.completions.create(
        model="tiny", prompt="hi", max_tokens=590, stream=True, extra_body=body
    ) as stream:
        next(iter(stream))
    until(lambda: stats(server).running == 0)


def test_an_error_in_mid_stream_is_an_event(serve: Serve) -> None:
    with serve(served_model_name="tiny") as server:
        model = next(iter(server.models))
        with asked(server, "/v1/completions", LONG) as connection:
            first = connection.recv(65536)
            assert b"200 OK" in first
            model.engine.shutdown()  # fails what runs
            text = first
            while not text.endswith(b"0\r\n\r\n"):
                text += connection.recv(65536)
        lines = [line for line in text.decode().splitlines() if line.startswith("data: ")]
        error = json.loads(lines[-2].removeprefix("data: "))["error"]
        assert lines[-1] == "data: [DONE]"
        assert error["code"] == 500
        assert "the engine was closed" in error["message"]


def test_a_request_that_takes_too_long_is_ended(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serve(served_model_name="tiny", request_timeout=0.05) as server:
        with asked(server, "/v1/completions", LONG) as connection:
            data = connection.recv(65536)
            while b"TimeoutError" not in data:
                data += connection.recv(65536)
        with (
            server.client() as client,
            pytest.raises(openai.InternalServerError, match="took longer") as raised,
        ):
            client.completions.create(
                model="tiny", prompt="hi", max_tokens=590, extra_body={"ignore_eos": True}
            )
        assert raised.value.status_code == 504
        assert raised.value.response.headers["x-should-retry"] == "false"
        until(lambda: stats(server).running == 0)
    stream, whole = (each.getMessage() for each in caplog.records if " model=" in each.getMessage())
    assert stream.startswith("POST /v1/completions 200 ")
    assert " failed=504 model=tiny prompt=" in stream
    assert whole.startswith("POST /v1/completions 504 ")
    assert " prompt=0 " not in whole
    assert " output=" not in whole  # nobody saw what was made


def test_comments_keep_a_stream_alive_before_its_first_token(serve: Serve) -> None:
    with (
        serve(served_model_name="tiny", sse_keep_alive_interval=0.02, max_num_seqs=1) as server,
        asked(server, "/v1/completions", LONG) as first,
        asked(server, "/v1/completions", {**LONG, "max_tokens": 1}) as second,
    ):
        data = b""
        while b": keep-alive\n\n" not in data:
            data += second.recv(65536)
        assert b"data:" not in data
        everything(first)
        while b"[DONE]" not in data:
            data += second.recv(65536)


def test_many_tasks_share_the_engine(server: Running, offline: LLM) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=f"Call me {seed}", max_tokens=10, seed=seed, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with server.async_client() as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(16)))

    found = asyncio.run(all_of_them())
    for seed, text in enumerate(found):
        params = SamplingParams(max_tokens=10, seed=seed)
        (expected,) = offline.generate(f"Call me {seed}", params, use_tqdm=False)
        assert text == expected.outputs[0].text
