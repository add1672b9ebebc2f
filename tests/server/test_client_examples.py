"""What vLLM's documents show of clients, with OpenAI's own client and the same calls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.server.conftest import Running

CONVERSATION: Any = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "Who sailed in which year?"},
    {"role": "assistant", "content": "Ahab did, long ago."},
    {"role": "user", "content": "Where to?"},
]


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion(server: Running, stream: bool) -> None:
    with server.client(api_key="EMPTY") as client:
        model = client.models.list().data[0].id
        completion = client.completions.create(
            model=model,
            prompt="It was the age of",
            echo=False,
            n=2,
            stream=stream,
            logprobs=3,
        )
        if stream:
            chunks = list(completion)
            assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
            assert "".join(choice.text for chunk in chunks for choice in chunk.choices)
        else:
            assert len(completion.choices) == 2
            assert all(choice.text for choice in completion.choices)
            assert completion.choices[0].logprobs is not None


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_completion(server: Running, stream: bool) -> None:
    with server.client(api_key="EMPTY") as client:
        model = client.models.list().data[0].id
        found = client.chat.completions.create(
            messages=CONVERSATION, model=model, stream=stream, max_tokens=20
        )
        if stream:
            deltas = [choice.delta for chunk in found for choice in chunk.choices]
            assert deltas[0].role == "assistant"
            assert "".join(delta.content or "" for delta in deltas)
        else:
            assert found.choices[0].message.content


def test_the_asynchronous_client(server: Running) -> None:
    async def talk() -> tuple[str, str]:
        async with server.async_client(api_key="EMPTY") as client:
            asked: Any = {"model": "tiny", "messages": CONVERSATION, "max_tokens": 12, "seed": 8}
            whole = await client.chat.completions.create(**asked)
            stream = await client.chat.completions.create(stream=True, **asked)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content or "", "".join(parts)

    whole, joined = asyncio.run(talk())
    assert whole == joined
    assert whole
