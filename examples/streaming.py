"""Print text as it comes: one request with LLM, several at a time with AsyncLLM."""

from __future__ import annotations

import asyncio
import sys

from enginewright.runtime import LLM, AsyncLLM, RequestOutputKind, SamplingParams

PROMPTS = ["The capital of Italy is", "A sequence of numbers: 1, 2", "A, B, C, D, E"]


def one(model: str) -> None:
    with LLM(model) as llm:
        for delta in llm.stream(PROMPTS[0], SamplingParams(temperature=0, max_tokens=24)):
            print(delta.outputs[0].text, end="", flush=True)
        print()


async def several(model: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, output_kind=RequestOutputKind.DELTA)

    async def follow(llm: AsyncLLM, prompt: str) -> None:
        async for delta in llm.generate(prompt, params):
            print(f"{prompt} | {delta.outputs[0].text!r}")

    async with AsyncLLM(model) as llm:
        await asyncio.gather(*(follow(llm, prompt) for prompt in PROMPTS))


async def until(model: str, enough: int) -> None:
    """Leaving the loop and closing the generator ends the request."""
    async with AsyncLLM(model) as llm:
        outputs = llm.generate(PROMPTS[1], SamplingParams(temperature=0, max_tokens=None))
        async for output in outputs:
            if len(output.outputs[0].token_ids) >= enough:
                print(f"left: {output.outputs[0].text!r}")
                break
        await outputs.aclose()


def main(model: str) -> None:
    one(model)
    asyncio.run(several(model))
    asyncio.run(until(model, 8))


if __name__ == "__main__":
    main(*sys.argv[1:])
