"""A worker: the time of prompts that begin alike, and of a conversation's first tokens.

Reads {"model", "threads", "prefix_caching", "warm_ids", "prompts", "output_tokens", "turns",
"answer_tokens"}, prompts and turns as token ids; prints {"prompts_s", "cached_tokens", "greedy_s",
"sampled_s"}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from enginewright.runtime import LLM, SamplingParams


def main() -> None:
    work = json.load(sys.stdin)
    llm = LLM(
        work["model"],
        threads=work["threads"],
        generation_config="vllm",
        enable_prefix_caching=work["prefix_caching"],
    )
    llm.generate([work["warm_ids"]], sampling(0, work["output_tokens"]))
    said: dict[str, Any] = answer_prompts(llm, work["prompts"], work["output_tokens"])
    for name, temperature in (("greedy_s", 0), ("sampled_s", 1)):
        llm.reset_prefix_cache()
        said[name] = converse(llm, work["turns"], sampling(temperature, work["answer_tokens"]))
    llm.close()
    print(json.dumps(said))


def sampling(temperature: float, tokens: int) -> SamplingParams:
    return SamplingParams(
        temperature=temperature, max_tokens=tokens, ignore_eos=True, detokenize=False
    )


def answer_prompts(llm: LLM, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    started = time.perf_counter()
    outputs = llm.generate(prompts, sampling(0, tokens))
    return {
        "prompts_s": time.perf_counter() - started,
        "cached_tokens": sum(output.num_cached_tokens or 0 for output in outputs),
    }


def converse(llm: LLM, turns: Sequence[Sequence[int]], params: SamplingParams) -> float:
    """Seconds to the first token, summed over the turns."""
    history: list[int] = []
    waited = 0.0
    for turn in turns:
        history += turn
        started, first = time.perf_counter(), None
        for news in llm.stream(list(history), params):
            first = first or time.perf_counter()
            history += news.outputs[0].token_ids
        assert first is not None
        waited += first - started
    return waited


main()
