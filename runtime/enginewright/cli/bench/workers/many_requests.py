"""A worker: an AsyncLLM under closed loops of several streams, then under arriving requests.

Reads {"model", "threads", "loops": [{"streams", "requests"}], "arriving": requests, "gaps",
"rate" (or null), "load"}, where a request is {"ids", "tokens"} and gaps are the times between
arrivals at one request a second; prints {"loops": [...], "arriving": {..., "rate"}}, of each load
{"wall_s", "output_tokens", "first_s": [...], "between_s": [...]}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from enginewright.runtime import AsyncLLM, SamplingParams
from enginewright.runtime.sampling.kinds import RequestOutputKind

Request = dict[str, Any]


@dataclass
class Tally:
    """What the requests of one load saw."""

    output_tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)

    async def ask(self, llm: AsyncLLM, request: Request) -> None:
        params = SamplingParams(
            temperature=0,
            max_tokens=request["tokens"],
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        last, begun = time.perf_counter(), False
        async for news in llm.generate({"prompt_token_ids": request["ids"]}, params):
            now, count = time.perf_counter(), len(news.outputs[0].token_ids)
            if not begun:
                self.first_s.append(now - last)
            elif count:  # what comes joined counts as coming evenly
                self.between_s += [(now - last) / count] * count
            begun, last = True, now
            self.output_tokens += count


async def timed(tally: Tally, load: Awaitable[Any]) -> dict[str, Any]:
    started = time.perf_counter()
    await load
    return {"wall_s": time.perf_counter() - started, **vars(tally)}


async def closed(llm: AsyncLLM, streams: int, requests: list[Request]) -> dict[str, Any]:
    tally, waiting = Tally(), iter(requests)

    async def client() -> None:
        for request in waiting:
            await tally.ask(llm, request)

    return await timed(tally, asyncio.gather(*(client() for _ in range(streams))))


async def arriving(
    llm: AsyncLLM, requests: list[Request], gaps: list[float], rate: float
) -> dict[str, Any]:
    tally = Tally()

    async def arrive() -> None:
        async with asyncio.TaskGroup() as group:
            for request, gap in zip(requests, gaps, strict=True):
                await asyncio.sleep(gap / rate)
                group.create_task(tally.ask(llm, request))

    return {"rate": rate, **await timed(tally, arrive())}


async def main() -> None:
    work = json.load(sys.stdin)
    async with AsyncLLM(
        work["model"],
        threads=work["threads"],
        generation_config="vllm",
        enable_prefix_caching=False,
    ) as llm:
        await Tally().ask(llm, work["loops"][0]["requests"][0])  # warms up
        loops = [await closed(llm, **loop) for loop in work["loops"]]
        reached = len(work["loops"][-1]["requests"]) / loops[-1]["wall_s"]
        rate = work["rate"] or work["load"] * reached
        said = {
            "loops": loops,
            "arriving": await arriving(llm, work["arriving"], work["gaps"], rate),
        }
    print(json.dumps(said))


asyncio.run(main())
