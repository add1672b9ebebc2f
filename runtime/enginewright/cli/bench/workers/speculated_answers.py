"""A worker: greedy answers with and without speculation, in turns.

Reads {"model", "threads", "speculative_config", "questions", "tokens", "rounds"}; prints
{"answers": [{"plain_s": [...], "fast_s": [...], "tokens", "same", "drafted", "accepted"}]}, one for
each question, with the seconds from the first token to the last, of each round; then one for all
questions at once, with the seconds from asking to the last token, and the tokens of all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from enginewright.runtime import LLM, EnginewrightError, RequestOutput, SamplingParams

Answer = tuple[list[list[int]], float, list[RequestOutput]]
"""Ids of each question, seconds, and the last output of each."""


def main() -> None:
    work = json.load(sys.stdin)
    plain, fast = opened(work, None), opened(work, work["speculative_config"])
    info = fast.engine_info
    if info.batch_invariant and not info.step_invariant:
        raise EnginewrightError(
            f"plan {fast.plan!r} drafts nothing for greedy answers; measure one whose tokens have "
            f"the same bits however many are computed at once, such as the CPU's native plan"
        )
    params = SamplingParams(temperature=0, max_tokens=work["tokens"])
    asked = [partial(answer, each, params) for each in work["questions"]]
    for llm in (plain, fast):
        asked[0](llm)
    asked.append(partial(answer_together, work["questions"], params))
    said = [compare(plain, fast, each, work["rounds"]) for each in asked]
    fast.close()
    plain.close()
    print(json.dumps({"answers": said}))


def opened(work: Mapping[str, Any], config: Mapping[str, Any] | None) -> LLM:
    return LLM(
        work["model"],
        threads=work["threads"],
        generation_config="vllm",
        speculative_config=config,
    )


def compare(plain: LLM, fast: LLM, ask: Callable[[LLM], Answer], rounds: int) -> dict[str, Any]:
    said: dict[str, Any] = {"plain_s": [], "fast_s": [], "drafted": 0, "accepted": 0, "same": True}
    for _ in range(rounds):
        ids, seconds, _ = ask(plain)
        said["plain_s"].append(seconds)
        found, seconds, outputs = ask(fast)
        said["fast_s"].append(seconds)
        said["tokens"], said["same"] = sum(map(len, ids)), said["same"] and ids == found
        for each in outputs:
            assert each.metrics is not None
            said["drafted"] += each.metrics.num_draft_tokens
            said["accepted"] += each.metrics.num_accepted_tokens
    return said


def answer(question: str, params: SamplingParams, llm: LLM) -> Answer:
    ids, times = list[int](), list[float]()
    for news in llm.stream_chat([{"role": "user", "content": question}], params):
        times.append(time.perf_counter())
        ids += news.outputs[0].token_ids
    return [ids], times[-1] - times[0], [news]


def answer_together(questions: list[str], params: SamplingParams, llm: LLM) -> Answer:
    started = time.perf_counter()
    outputs = llm.chat([[{"role": "user", "content": each}] for each in questions], params)
    seconds = time.perf_counter() - started
    return [each.outputs[0].token_ids for each in outputs], seconds, outputs


main()
