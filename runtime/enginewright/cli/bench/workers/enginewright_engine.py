"""Our own runtime, for measure.py; ``model`` is an artifact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enginewright.runtime import LLM, SamplingParams


class Engine:
    """See measure.py."""

    def __init__(
        self,
        model: str,
        threads: int,
        rows: int,
        context: int,
        reuse: bool,
        allow_native_code: bool | None = None,
    ) -> None:
        self._llm = LLM(
            model,
            threads=threads,
            max_batch=rows or None,
            max_context=context or None,
            enable_prefix_caching=reuse,
            allow_native_code=allow_native_code,
            generation_config="vllm",
        )
        self.plan = self._llm.plan

    def generate(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        return [o.outputs[0].token_ids for o in self._llm.generate(prompts, _greedy(tokens))]

    def stream(self, prompt: list[int], tokens: int, tick: Callable[[], None]) -> list[int]:
        answer: list[int] = []
        for news in self._llm.stream(prompt, _greedy(tokens)):
            answer += news.outputs[0].token_ids
            tick()
        return answer

    def score(self, ids: list[int]) -> Any:
        return self._llm.logits(ids)


def _greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
