"""A worker: when the tokens of single streams come.

Reads {"model", "threads", "tokens", "warm_ids", "prompts"}; prints {"streams": [{"first_s",
"between_s": [...]}]}, one for each prompt.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from typing import Any

from enginewright.runtime import LLM, SamplingParams


def main() -> None:
    work = json.load(sys.stdin)
    llm = LLM(
        work["model"],
        threads=work["threads"],
        generation_config="vllm",
        enable_prefix_caching=False,
    )
    params = SamplingParams(
        temperature=0, max_tokens=work["tokens"], ignore_eos=True, detokenize=False
    )
    follow(llm, work["warm_ids"], params)
    said = [follow(llm, prompt, params) for prompt in work["prompts"]]
    llm.close()
    print(json.dumps({"streams": said}))


def follow(llm: LLM, prompt: list[int], params: SamplingParams) -> dict[str, Any]:
    times = [time.perf_counter()]
    times += [time.perf_counter() for _ in llm.stream(prompt, params)]
    first, *between = [later - earlier for earlier, later in pairwise(times)]
    return {"first_s": first, "between_s": between}


main()
