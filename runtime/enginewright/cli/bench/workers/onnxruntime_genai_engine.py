"""onnxruntime-genai, for measure.py; ``model`` is a folder that its own builder wrote."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any


class Engine:
    """See measure.py. A generator is kept where it may be: its cache can be wound back."""

    def __init__(self, model: str, threads: int, rows: int, context: int, reuse: bool) -> None:
        self._genai: Any = importlib.import_module("onnxruntime_genai")
        config = self._genai.Config(model)
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = self._genai.Model(config)
        self._context, self._reuse = context, reuse
        self._kept: tuple[Any, list[int]] | None = None

    def generate(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        if self._reuse:  # by rewinding, which batches cannot
            return [self.stream(ids, tokens, lambda: None) for ids in prompts]
        generator = self._generator(len(prompts), len(prompts[0]) + tokens)
        generator.append_tokens(prompts if len(prompts) > 1 else prompts[0])
        for _ in range(tokens):
            generator.generate_next_token()
        rows = range(len(prompts))
        return [[int(token) for token in generator.get_sequence(row)[-tokens:]] for row in rows]

    def stream(self, prompt: list[int], tokens: int, tick: Callable[[], None]) -> list[int]:
        if self._reuse and self._kept is not None:
            generator, known = self._kept
            same = next(
                (at for at, (a, b) in enumerate(zip(known, prompt, strict=False)) if a != b),
                min(len(known), len(prompt) - 1),
            )
            generator.rewind_to(same)
        else:
            generator, same = self._generator(1, self._context or len(prompt) + tokens), 0
        generator.append_tokens(prompt[same:])
        answer = []
        for _ in range(tokens):
            generator.generate_next_token()
            answer.append(int(generator.get_sequence(0)[-1]))
            tick()
        self._kept = generator, prompt + answer[:-1]
        return answer

    def score(self, ids: list[int]) -> Any:
        """Token by token: these models give the logits of the last position only."""
        import numpy as np

        generator = self._generator(1, len(ids) + 1)
        rows = []
        for token in ids:
            generator.append_tokens([token])
            rows.append(np.array(generator.get_logits()).reshape(-1))
        return np.stack(rows)

    def _generator(self, rows: int, length: int) -> Any:
        params = self._genai.GeneratorParams(self._model)
        # Up to min_length no end-of-sequence token can be chosen: this is how it ignores them.
        params.set_search_options(
            do_sample=False, min_length=length, max_length=length, batch_size=rows
        )
        return self._genai.Generator(self._model, params)
