"""A worker: the decode steps of batches, one after another.

Reads {"model", "threads", "tokens", "batches": [[ids, ...], ...]}; prints {"step_s"}: of each batch
the median time from the end of a decode step to the end of the next.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import pairwise
from typing import Any

from enginewright.runtime import LLM, SamplingParams

CHUNK = 256
"""Rows go on decoding between parts of the others' prompts, of no fewer tokens than these."""


def main() -> None:
    work = json.load(sys.stdin)
    llm = LLM(
        work["model"],
        threads=work["threads"],
        generation_config="vllm",
        enable_prefix_caching=False,
    )
    ends = watch(llm)
    said = []
    for batch in work["batches"]:
        ends.clear()
        tokens = work["tokens"] + sum(map(len, batch)) // CHUNK
        params = SamplingParams(
            temperature=0,
            max_tokens=min(tokens, llm.max_context - len(batch[0])),
            ignore_eos=True,
            detokenize=False,
        )
        llm.generate(batch, params)
        whole = [at for rows, at in ends if rows == len(batch)]
        said.append(statistics.median(later - earlier for earlier, later in pairwise(whole)))
    llm.close()
    print(json.dumps({"step_s": said}))


def watch(llm: LLM) -> list[tuple[int, float]]:
    """Rows and end of each decode step from now on."""
    core = llm._core  # no public call shows the engine's steps
    assert core is not None
    engine: Any = core._engine
    step, ends = engine.step, []

    def timed(batch: Any) -> Any:
        logits = step(batch)
        if batch.input_ids.shape[1] == 1:
            ends.append((len(batch.input_ids), time.perf_counter()))
        return logits

    engine.step = timed
    return ends


main()
