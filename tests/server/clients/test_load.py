"""Many clients at a time: right answers, aborts and rubbish mixed; nothing is left behind.

At the size of every day; ENGINEWRIGHT_SOAK_SECONDS (`make soak`) makes it long.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from enginewright.runtime import LLM, SamplingParams

CLIENTS = 64
ROUNDS = 8
SOAK = float(os.environ.get("ENGINEWRIGHT_SOAK_SECONDS", "0"))
TOKENS = 24
PROMPTS = [f"Call me Ishmael, {number}. " * (1 + number % 4) for number in range(16)]
MOST_GROWTH = 48 * 2**20

pytestmark = pytest.mark.slow


@dataclass
class Load:
    """What the clients do, and what came of it."""

    client: openai.AsyncOpenAI
    texts: list[str]
    chats: list[str]
    done: Counter[str] = field(default_factory=Counter)

    async def completion(self, number: int) -> None:
        answer = await self.client.completions.create(
            model="tiny", prompt=PROMPTS[number], seed=number, max_tokens=TOKENS
        )
        assert answer.choices[0].text == self.texts[number]

    async def chat(self, number: int) -> None:
        answer = await self.client.chat.completions.create(**self._chat(number))
        assert answer.choices[0].message.content == self.chats[number]

    async def stream(self, number: int) -> None:
        parts = []
        async with await self.client.chat.completions.create(
            **self._chat(number), stream=True
        ) as stream:
            async for chunk in stream:
                parts += [choice.delta.content or "" for choice in chunk.choices]
        assert "".join(parts) == self.chats[number]

    async def abort(self, number: int) -> None:
        asked = {**self._chat(number), "max_tokens": 400, "stream": True}
        async with await self.client.chat.completions.create(**asked) as stream:
            async for _ in stream:
                if random.random() < 0.3:
                    return

    async def hang_up(self, number: int) -> None:
        """Gone before the answer is there: so many tokens take far longer."""
        asked = {**self._chat(number), "max_tokens": 400, "extra_body": {"ignore_eos": True}}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await self.client.chat.completions.create(**asked)

    async def rubbish(self, number: int) -> None:
        wrong: list[dict[str, Any]] = [
            {"temperature": -1},
            {"max_tokens": "many"},
            {"n": 10**6},
            {"messages": "none"},
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            {"logit_bias": {"x": 1}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}},
            {"stop": [""]},
        ]
        with pytest.raises(openai.BadRequestError):
            await self.client.chat.completions.create(
                model="tiny", messages=[], extra_body={**self._chat(number), **wrong[number % 8]}
            )

    async def busy(self, index: int, goes_on: Callable[[int], bool]) -> None:
        """One client."""
        kinds: list[Callable[[int], Coroutine[Any, Any, None]]] = [
            *(self.completion, self.chat, self.stream, self.stream),
            *(self.abort, self.hang_up, self.rubbish),
        ]
        random_of_client = random.Random(index)
        for round_number in itertools.count():
            if not goes_on(round_number):
                return
            kind = random_of_client.choice(kinds)
            await kind(random_of_client.randrange(len(PROMPTS)))
            self.done[kind.__name__] += 1

    def _chat(self, number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": PROMPTS[number]}]
        return {"model": "tiny", "messages": messages, "seed": number, "max_tokens": TOKENS}


def test_many_mixed_clients(server_process: Any, offline: LLM) -> None:
    params = [SamplingParams(max_tokens=TOKENS, seed=number) for number in range(len(PROMPTS))]
    texts = offline.generate(PROMPTS, params, use_tqdm=False)
    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    chats = offline.chat(turns, params, use_tqdm=False)

    async def run(goes_on: Callable[[int], bool]) -> Counter[str]:
        base = f"{server_process.url}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="any", max_retries=0) as client:
            load = Load(client, *([o.outputs[0].text for o in each] for each in (texts, chats)))
            async with asyncio.TaskGroup() as tasks:
                for index in range(CLIENTS):
                    tasks.create_task(load.busy(index, goes_on))
        return load.done

    asyncio.run(run(lambda number: number < ROUNDS))
    before = server_process.resident()
    end = time.monotonic() + SOAK
    done = asyncio.run(run(lambda number: number < ROUNDS or time.monotonic() < end))
    _settle(server_process.url)
    growth = server_process.resident() - before
    print(f"{sum(done.values())} requests {dict(done)}, memory {growth / 2**20:+.1f} MB")
    assert len(done) == 6
    assert growth < MOST_GROWTH


def _settle(url: str) -> None:
    """Until nothing runs and nothing waits; then nothing of the cache is held."""
    end = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            families = text_string_to_metric_families(answer.read().decode())
        values = {each.name: sum(sample.value for sample in each.samples) for each in families}
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        left = {name: values[f"enginewright:{name}"] for name in names}
        if not any(left.values()):
            return
        assert time.monotonic() < end, f"left behind: {left}"
        time.sleep(0.05)
