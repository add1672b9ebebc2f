"""Measures a folder of onnxruntime-genai in this process; the protocol of enginewright_worker."""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any


def main() -> None:
    work = json.load(sys.stdin)
    started = time.perf_counter()
    genai: Any = importlib.import_module("onnxruntime_genai")
    config = genai.Config(work["model"])
    threads = {"intra_op_num_threads": work["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
    model = genai.Model(config)
    load = time.perf_counter() - started

    def timed(prompts: list[list[int]], tokens: int) -> tuple[float, list[int]]:
        length = len(prompts[0]) + tokens
        begun = time.perf_counter()
        params = genai.GeneratorParams(model)
        # min_length keeps end-of-sequence tokens out, which is how they are ignored here
        params.set_search_options(
            do_sample=False, min_length=length, max_length=length, batch_size=len(prompts)
        )
        generator = genai.Generator(model, params)
        generator.append_tokens(prompts if len(prompts) > 1 else prompts[0])
        for _ in range(tokens):
            generator.generate_next_token()
        token_ids = [int(token) for token in generator.get_sequence(0)[-tokens:]]
        return time.perf_counter() - begun, token_ids

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
    said = {"load_s": load, "first_token_s": first, "decode_s": many - one, "batch_s": batch}
    print(json.dumps({**said, "token_ids": token_ids}))


main()
