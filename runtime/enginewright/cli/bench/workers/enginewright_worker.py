"""Measures an artifact in this process: a workload on stdin, one line of JSON on stdout."""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    work = json.load(sys.stdin)
    started = time.perf_counter()
    from enginewright.runtime import LLM, SamplingParams

    llm = LLM(work["model"], threads=work["threads"], generation_config="vllm")
    load = time.perf_counter() - started

    def timed(prompts: list[list[int]], tokens: int) -> tuple[float, list[int]]:
        params = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        begun = time.perf_counter()
        outputs = llm.generate(prompts, params)
        return time.perf_counter() - begun, outputs[0].outputs[0].token_ids

    prompts, tokens = work["decode_prompts"], work["decode_tokens"]
    timed([work["warm_ids"]], 2)
    first, _ = timed([work["prefill_ids"]], 1)
    one, _ = timed(prompts[:1], 1)
    many, token_ids = timed(prompts[:1], tokens + 1)
    batch = None
    if len(prompts) > 1:
        timed(prompts, 2)
        batch_one, _ = timed(prompts, 1)
        batch = timed(prompts, tokens + 1)[0] - batch_one
    llm.close()
    said = {"load_s": load, "first_token_s": first, "decode_s": many - one, "batch_s": batch}
    print(json.dumps({**said, "token_ids": token_ids}))


main()
