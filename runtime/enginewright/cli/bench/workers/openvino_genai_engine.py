"""OpenVINO GenAI's continuous batching, for measure.py; ``model`` is a folder of its IR."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_AT_ONCE = 2**16
"""Tokens of a step: a prompt is not cut, as its pipeline for single requests does it."""


class Engine:
    """See measure.py."""

    def __init__(self, model: str, threads: int, rows: int, context: int, reuse: bool) -> None:
        self._model = model
        self._options = {"INFERENCE_NUM_THREADS": threads}
        self._reuse, self._rows = reuse, max(rows, 1)
        self._pipeline: Any = None
        self._requests = 0

    def generate(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        handles = [self._ask(prompts[0], tokens)]
        while self._reuse and not handles[0].can_read():  # a prefix is shared once it is computed
            self._pipeline.step()
        handles += [self._ask(ids, tokens) for ids in prompts[1:]]
        return self._run(handles, lambda: None)

    def stream(self, prompt: list[int], tokens: int, tick: Callable[[], None]) -> list[int]:
        return self._run([self._ask(prompt, tokens)], tick)[0]

    def score(self, ids: list[int]) -> Any:
        """The same IR by OpenVINO itself, whose pipeline gives no logits."""
        ov: Any = importlib.import_module("openvino")
        path = Path(self._model) / "openvino_model.xml"
        request = ov.Core().compile_model(path, "CPU", self._options).create_infer_request()
        count = len(ids)
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return np.array(request.infer(inputs)["logits"][0])

    def _ask(self, ids: list[int], tokens: int) -> Any:
        genai: Any = importlib.import_module("openvino_genai")
        ov: Any = importlib.import_module("openvino")
        if self._pipeline is None:
            scheduler = genai.SchedulerConfig()
            scheduler.max_num_batched_tokens = _AT_ONCE
            scheduler.max_num_seqs = self._rows
            scheduler.enable_prefix_caching = self._reuse
            self._pipeline = genai.ContinuousBatchingPipeline(
                self._model, scheduler, "CPU", self._options
            )
        how = genai.GenerationConfig()
        how.max_new_tokens, how.ignore_eos, how.do_sample = tokens, True, False
        self._requests += 1
        tensor = ov.Tensor(np.array([ids], np.int64))
        return self._pipeline.add_request(self._requests, tensor, how)

    def _run(self, handles: list[Any], tick: Callable[[], None]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in handles]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for row, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        answers[row] += output.generated_ids
                        tick()
        return answers
