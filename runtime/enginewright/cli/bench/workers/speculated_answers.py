"""A worker: greedy answers with and without speculation, in turns.

Reads {"model", "threads", "speculative_config", "questions", "tokens", "rounds"}; prints
{"answers": [{"plain_s": [...], "fast_s": [...], "tokens", "same", "drafted", "accepted"}]}, one for
each question: seconds from the first token to the last, of each round.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from enginewright.runtime import LLM, EnginewrightError, RequestMetrics, SamplingParams


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
    for llm in (plain, fast):
        answer(llm, work["questions"][0], params)
    said = [compare(plain, fast, each, params, work["rounds"]) for each in work["questions"]]
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


def compare(
    plain: LLM, fast: LLM, question: str, params: SamplingParams, rounds: int
) -> dict[str, Any]:
    said: dict[str, Any] = {"plain_s": [], "fast_s": [], "drafted": 0, "accepted": 0, "same": True}
    for _ in range(rounds):
        ids, seconds, _ = answer(plain, question, params)
        said["plain_s"].append(seconds)
        found, seconds, metrics = answer(fast, question, params)
        said["fast_s"].append(seconds)
        said["tokens"], said["same"] = len(ids), said["same"] and ids == found
        said["drafted"] += metrics.num_draft_tokens
        said["accepted"] += metrics.num_accepted_tokens
    return said


def answer(
    llm: LLM, question: str, params: SamplingParams
) -> tuple[list[int], float, RequestMetrics]:
    ids, times = list[int](), list[float]()
    for news in llm.stream_chat([{"role": "user", "content": question}], params):
        times.append(time.perf_counter())
        ids += news.outputs[0].token_ids
    assert news.metrics is not None
    return ids, times[-1] - times[0], news.metrics


main()
