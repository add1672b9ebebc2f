"""What the Hugging Face model answers to the fixed prompts and the bundled text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from enginewright.runtime.conformance import Reference, log_softmax
from enginewright.runtime.tokenizer import Tokenizer

_GREEDY_TOKENS = 64
_WINDOW = 512
_WINDOWS = 2
_KEPT = 256


def make_reference(model: PreTrainedModel, tokenizer: Tokenizer, max_context: int) -> Reference:
    """Run the model in fp32 over what the engine will be asked.

    Prompts and windows are cut to what fits ``max_context``.
    """
    greedy_tokens = min(_GREEDY_TOKENS, max(max_context // 2, 1))
    prompts = [ids[: max_context - greedy_tokens] for ids in _prompts(tokenizer)]
    answers = [_greedy(model, ids, greedy_tokens) for ids in prompts]
    windows = _windows(tokenizer, min(_WINDOW, max_context))
    rows = [_score(model, window) for window in windows]
    return Reference(
        prompt_ids=_padded(prompts),
        greedy_ids=np.array([ids for ids, _ in answers], np.int32),
        greedy_margins=np.array([margins for _, margins in answers], np.float32),
        text_ids=np.array(windows, np.int32),
        top_ids=np.concatenate([row[0] for row in rows]),
        top_logprobs=np.concatenate([row[1] for row in rows]),
        label_logprobs=np.concatenate([row[2] for row in rows]),
    )


def _data(name: str) -> str:
    return (Path(__file__).parent / "data" / name).read_text("utf-8")


def _prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(line) for line in _data("prompts.txt").splitlines() if line]


def _windows(tokenizer: Tokenizer, size: int) -> list[list[int]]:
    ids = tokenizer.encode(_data("text.txt"))
    count = max(min(_WINDOWS, len(ids) // size), 1)
    size = min(size, len(ids))
    return [ids[start : start + size] for start in range(0, count * size, size)]


@torch.inference_mode()
def _greedy(
    model: PreTrainedModel, prompt: Sequence[int], length: int
) -> tuple[list[int], list[float]]:
    """The greedy continuation and, at each position, how far the best is from the second."""
    ids, margins = [], []
    step, cache = torch.tensor([list(prompt)]), None
    for _ in range(length):
        output: Any = model(input_ids=step, past_key_values=cache, use_cache=True)
        best = torch.topk(output.logits[0, -1], 2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        step, cache = best.indices[:1][None], output.past_key_values
    return ids, margins


@torch.inference_mode()
def _score(model: PreTrainedModel, window: Sequence[int]) -> tuple[Any, Any, Any]:
    """Likeliest tokens, their log probabilities, and those of the text's own tokens."""
    output: Any = model(input_ids=torch.tensor([list(window)]))
    logprobs = log_softmax(output.logits[0, :-1].numpy())
    best = np.argsort(-logprobs, axis=1, kind="stable")[:, :_KEPT]
    labels = np.asarray(window[1:])[:, None]
    return (
        best.astype(np.int32),
        np.take_along_axis(logprobs, best, axis=1),
        np.take_along_axis(logprobs, labels, axis=1)[:, 0],
    )


def _padded(rows: Sequence[Sequence[int]]) -> Any:
    padded = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = ids
    return padded
