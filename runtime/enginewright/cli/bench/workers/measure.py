"""A worker: measures one engine in this process; the protocol of children.py.

``python measure.py ENGINE`` imports ENGINE from this folder; its ``open_engine(model, threads)``
returns a function from prompts (lists of token ids, equally long) and a number of tokens to the
tokens of the first row: greedy, end-of-sequence tokens ignored. Engines have environments of
their own, so that nothing here may import enginewright.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], list[int]]


def main() -> None:
    engine = importlib.import_module(sys.argv[1])
    work = json.load(sys.stdin)
    started = time.perf_counter()
    generate: Generate = engine.open_engine(work["model"], work["threads"])
    load = time.perf_counter() - started
    print(json.dumps({"load_s": load, **measure(generate, work)}))


def measure(generate: Generate, work: dict[str, Any]) -> dict[str, Any]:
    """Every figure once, each kind of step warmed up before it is timed."""

    def timed(prompts: Prompts, tokens: int) -> float:
        started = time.perf_counter()
        generate(prompts, tokens)
        return time.perf_counter() - started

    def after_first(prompts: Prompts, tokens: int) -> float:
        generate(prompts, 2)
        return timed(prompts, tokens + 1) - timed(prompts, 1)

    generate([work["warm_ids"]], 2)
    prompts, tokens = work["decode_prompts"], work["decode_tokens"]
    return {
        "first_token_s": timed([work["prefill_ids"]], 1),
        "decode_s": after_first(prompts[:1], tokens),
        "batch_s": after_first(prompts, tokens) if len(prompts) > 1 else None,
        "checked": [generate([prompt], work["check_tokens"]) for prompt in work["check_prompts"]],
    }


main()
