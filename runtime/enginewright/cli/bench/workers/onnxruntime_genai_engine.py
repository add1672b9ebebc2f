"""onnxruntime-genai, for measure.py; ``model`` is a folder that its own builder wrote."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any


def open_engine(model: str, threads: int) -> Callable[[list[list[int]], int], list[int]]:
    """Load the folder at ``model``; see measure.py for what is returned."""
    genai: Any = importlib.import_module("onnxruntime_genai")
    config = genai.Config(model)
    options = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    loaded = genai.Model(config)

    def generate(prompts: list[list[int]], tokens: int) -> list[int]:
        length = len(prompts[0]) + tokens
        params = genai.GeneratorParams(loaded)
        # Up to min_length no end-of-sequence token can be chosen: this is how it ignores them.
        params.set_search_options(
            do_sample=False, min_length=length, max_length=length, batch_size=len(prompts)
        )
        generator = genai.Generator(loaded, params)
        generator.append_tokens(prompts if len(prompts) > 1 else prompts[0])
        for _ in range(tokens):
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)[-tokens:]]

    return generate
