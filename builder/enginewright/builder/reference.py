"""What the Hugging Face model answers to the fixed prompts and the bundled text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from enginewright.runtime.conformance import Reference, log_softmax, some_positions
from enginewright.runtime.text.tokenizer import Tokenizer

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
    greedy_ids, margins = _greedy(model, prompts, greedy_tokens)
    windows = _windows(tokenizer, min(_WINDOW, max_context))
    rows = [part for window in windows for part in _score(model, window)]
    return Reference(
        prompt_ids=_padded(prompts),
        greedy_ids=greedy_ids.astype(np.int32),
        greedy_margins=margins,
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
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], length: int
) -> tuple[Any, Any]:
    """Greedy ids [P, length] and how far the best logit is from the second, all rows together.

    Rows are padded on the left and masked, as Hugging Face models expect of a batch.
    """
    width = max(map(len, prompts))
    step = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    positions, cache = (mask.cumsum(1) - 1).clamp(min=0), None
    ids, margins = [], []
    for _ in range(length):
        output: Any = model(
            input_ids=step,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        best = torch.topk(output.logits[:, -1], 2)
        step, cache = best.indices[:, :1], output.past_key_values
        mask = torch.cat([mask, torch.ones_like(step)], dim=1)
        positions = positions[:, -1:] + 1
        ids.append(step)
        margins.append(best.values[:, :1] - best.values[:, 1:])
    return torch.cat(ids, dim=1).numpy(), torch.cat(margins, dim=1).numpy()


def _score(model: PreTrainedModel, window: Sequence[int]) -> list[tuple[Any, Any, Any]]:
    """Likeliest tokens, their log probabilities, and those of the text's own tokens, in parts."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(window)])).logits[0, :-1].numpy()
    labels = np.asarray(window[1:])[:, None]
    return [_ranked(log_softmax(logits[at]), labels[at]) for at in some_positions(len(labels))]


def _ranked(logprobs: Any, labels: Any) -> tuple[Any, Any, Any]:
    best = np.argsort(-logprobs, axis=1, kind="stable")[:, :_KEPT]
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
