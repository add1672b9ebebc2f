"""llama.cpp through llama-cpp-python's plain bindings, for measure.py; ``model`` is a GGUF file.

Prompts that begin alike are computed as its own tools do it: the common part once, then copied
to the other sequences, whose cells it shares.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_BATCH = 2048

Token = tuple[int, int, int, bool]
"""A token's id, position, sequence, and whether its logits are wanted."""


class Engine:
    """See measure.py."""

    def __init__(self, model: str, threads: int, rows: int, context: int, reuse: bool) -> None:
        self._lib: Any = importlib.import_module("llama_cpp")
        lib = self._lib
        self._quiet = lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(self._quiet, None)
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(
            model.encode(), lib.llama_model_default_params()
        )
        params = lib.llama_context_default_params()
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max = max(rows, 1)
        params.n_ctx = params.n_seq_max * (context or 2048)
        params.n_batch = _BATCH
        params.kv_unified = reuse and rows > 1
        self._context = lib.llama_init_from_model(self._model, params)
        self._memory = lib.llama_get_memory(self._context)
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(_BATCH, 0, 1)
        self._reuse, self._known = reuse, list[int]()

    def generate(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        self._lib.llama_memory_clear(self._memory, False)
        same = _common(prompts) if self._reuse and len(prompts) > 1 else 0
        self._decode((id_, at, 0, False) for at, id_ in enumerate(prompts[0][:same]))
        for row in range(1, len(prompts)):
            if same:
                self._lib.llama_memory_seq_cp(self._memory, 0, row, 0, same)
        last = len(prompts[0]) - 1
        next_ids = self._decode(
            (id_, at, row, at == last)
            for row, ids in enumerate(prompts)
            for at, id_ in enumerate(ids)
            if at >= same
        )
        rows = [[id_] for id_ in next_ids]
        for at in range(last + 1, last + tokens):
            next_ids = self._decode((id_, at, row, True) for row, id_ in enumerate(next_ids))
            for answer, id_ in zip(rows, next_ids, strict=True):
                answer.append(id_)
        return rows

    def stream(self, prompt: list[int], tokens: int, tick: Callable[[], None]) -> list[int]:
        same = 0
        if self._reuse:
            same = min(_common([self._known, prompt]), len(prompt) - 1)
        self._lib.llama_memory_seq_rm(self._memory, 0, same, -1)
        last = len(prompt) - 1
        new = enumerate(prompt[same:], same)
        answer = self._decode((id_, at, 0, at == last) for at, id_ in new)
        tick()
        while len(answer) < tokens:
            answer += self._decode([(answer[-1], last + len(answer), 0, True)])
            tick()
        self._known = prompt + answer[:-1]
        return answer

    def score(self, ids: list[int]) -> Any:
        assert len(ids) <= _BATCH
        self._lib.llama_memory_clear(self._memory, False)
        self._decode((id_, at, 0, True) for at, id_ in enumerate(ids))
        logits = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (len(ids), self._vocabulary)).copy()

    def _decode(self, tokens: Iterable[Token]) -> list[int]:
        """Compute tokens in batches; the likeliest token after each of those that are wanted."""
        left, found = list(tokens), []
        while left:
            part, left = left[:_BATCH], left[_BATCH:]
            batch = self._batch
            batch.n_tokens = len(part)
            for i, (id_, at, row, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = id_, at, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            status = self._lib.llama_decode(self._context, batch)
            if status:
                raise RuntimeError(f"llama_decode: status {status}")
            found += [self._best(i) for i, token in enumerate(part) if token[3]]
        return found

    def _best(self, at: int) -> int:
        logits = self._lib.llama_get_logits_ith(self._context, at)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


def _common(prompts: list[list[int]]) -> int:
    """How many first ids all have in common."""
    shortest = min(map(len, prompts))
    return next((at for at in range(shortest) if len({ids[at] for ids in prompts}) > 1), shortest)
