"""A worker: how long a fresh process takes to its first token, on the clock and in CPU time."""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    work = json.load(sys.stdin)
    from enginewright.runtime import LLM, SamplingParams

    llm = LLM(work["model"], threads=work["threads"], generation_config="vllm")
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    llm.generate(work["prompt"], params)
    # CLOCK_MONOTONIC is one clock for all processes: the parent subtracts its own reading.
    said = {"reached": time.monotonic(), "cpu_s": time.process_time()}
    llm.close()
    print(json.dumps(said))


main()
