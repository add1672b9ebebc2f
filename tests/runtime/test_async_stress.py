"""A thousand requests at once, many of them ended early at any stage: nothing leaks or waits."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import LLM, AsyncLLM, RequestOutput, RequestOutputKind, SamplingParams

REQUESTS = 1000
KINDS = list(RequestOutputKind)
AFTER = SamplingParams(
    temperature=0, max_tokens=3, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
)


def _request(number: int) -> tuple[list[int], SamplingParams]:
    """Prompts of which many begin alike; greedy or seeded, so that each has one right answer."""
    draw = random.Random(number)
    shared = [5 + at % 200 for at in range(draw.choice((0, 16, 40)))]
    prompt = [*shared, *draw.choices(range(5, 250), k=draw.randrange(1, 30))]
    temperature, n = draw.choice(((0, 1), (0, 1), (1.0, 1), (1.0, 2)))
    params = SamplingParams(
        temperature=temperature,
        seed=number,
        n=n,
        max_tokens=draw.randrange(1, 24),
        ignore_eos=True,
        output_kind=KINDS[number % 3],
    )
    return prompt, params


async def _follow(
    engine: AsyncLLM, number: int, prompt: list[int], params: SamplingParams
) -> list[RequestOutput]:
    """The outputs of a request that three times in five is let finish, else is ended early."""
    draw = random.Random(-number)
    name = f"request {number}"
    end = "never" if number % 5 in (0, 1, 2) else draw.choice(("abort", "close", "cancel"))
    following = asyncio.ensure_future(_collect(engine, prompt, params, name))
    if end == "close":
        stream = engine.generate(prompt, params, f"{name}, again")
        await anext(stream)
        await stream.aclose()
    elif end != "never":
        await asyncio.sleep(draw.random() * draw.choice((0, 1, 10)))
        if end == "abort":
            await engine.abort(name)
        else:
            following.cancel()
    try:
        return await following
    except asyncio.CancelledError:
        return []


async def _collect(engine: AsyncLLM, *request: Any) -> list[RequestOutput]:
    return [output async for output in engine.generate(*request)]


@pytest.mark.parametrize("memory", [None, 1 << 18], ids=["ample", "tight"])
def test_a_thousand_requests_and_aborts_at_every_stage(
    tiny_artifact: Path, memory: int | None
) -> None:
    requests = [_request(number) for number in range(REQUESTS)]
    checked = range(0, REQUESTS, 5)
    with LLM(tiny_artifact, threads=1) as llm:
        wanted = llm.generate([requests[n][0] for n in checked], [requests[n][1] for n in checked])

    async def main() -> list[list[RequestOutput]]:
        given = {"threads": 1, "max_requests": 2 * REQUESTS, "kv_cache_memory_bytes": memory}
        async with AsyncLLM(tiny_artifact, **given) as engine:
            tasks = (_follow(engine, number, *each) for number, each in enumerate(requests))
            told = await asyncio.wait_for(asyncio.gather(*tasks), timeout=600)
            async with asyncio.timeout(60):
                while (stats := await engine.stats()).running + stats.waiting:
                    await asyncio.sleep(0.01)
            assert stats.cache_usage == 0
            assert not engine._engine._core._jobs
            assert not engine._requests
            (after,) = [output async for output in engine.generate([7, 8, 9], AFTER)]
            assert len(after.outputs[0].token_ids) == 3
            return told

    found = asyncio.run(main())
    for number, expected in zip(checked, wanted, strict=True):
        joined, *more = found[number]
        for output in more:
            delta = requests[number][1].output_kind is RequestOutputKind.DELTA
            joined.add(output, aggregate=delta)
        joined.outputs.sort(key=lambda completion: completion.index)
        assert joined.finished
        assert joined.outputs == expected.outputs, number
