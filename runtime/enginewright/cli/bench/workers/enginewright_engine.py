"""Our own runtime, for measure.py."""

from __future__ import annotations

from collections.abc import Callable


def open_engine(model: str, threads: int) -> Callable[[list[list[int]], int], list[int]]:
    """Load the artifact at ``model``; see measure.py for what is returned."""
    from enginewright.runtime import LLM, SamplingParams

    # What is measured is computing a prompt, not knowing it from the run before.
    llm = LLM(model, threads=threads, generation_config="vllm", enable_prefix_caching=False)

    def generate(prompts: list[list[int]], tokens: int) -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        return llm.generate(prompts, params)[0].outputs[0].token_ids

    return generate
