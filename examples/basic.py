"""Continue prompts: greedily, then by draws that a seed makes repeatable."""

from __future__ import annotations

import sys

from enginewright.runtime import LLM, SamplingParams

PROMPTS = ["The capital of Italy is", "A sequence of numbers: 1, 2", "Once upon a time"]


def main(model: str) -> None:
    with LLM(model) as llm:
        # All prompts run together; outputs come in their order.
        greedy = SamplingParams(temperature=0)
        for output in llm.generate(PROMPTS, greedy):
            print(f"Prompt: {output.prompt!r}, Generated text: {output.outputs[0].text!r}")

        sampled = SamplingParams(temperature=0.8, top_p=0.95, seed=1, n=2, max_tokens=24)
        (output,) = llm.generate(PROMPTS[-1], sampled)
        for each in output.outputs:
            print(f"Sample {each.index}: {each.text!r}, ended by {each.finish_reason}")


if __name__ == "__main__":
    main(*sys.argv[1:])
