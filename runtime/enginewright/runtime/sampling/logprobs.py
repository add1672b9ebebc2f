"""Log probabilities of chosen, likeliest and named tokens, from raw logits.

| tensor | shape  | dtype   | meaning                           |
|--------|--------|---------|-----------------------------------|
| logits | [V]    | float32 | raw logits of one position        |
| rows   | [S, V] | float32 | those of consecutive positions    |
| ids    | [n]    | int64   | token ids, in 0..V-1              |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import EnginewrightError, SamplingParamsError
from enginewright.runtime.sampling.processors import Ids, Logits
from enginewright.runtime.sampling.truncation import highest, weights_of

if TYPE_CHECKING:
    from enginewright.runtime.sampling.params import SamplingParams

Scores = dict[int, tuple[float, int]]
"""Token id -> (log probability, rank from 1)."""


def check_usable(logits: Logits) -> None:
    """Raise EnginewrightError where a row's highest logit is no finite number."""
    highest = logits.max(axis=-1)
    if not np.isfinite(highest).all():
        raise EnginewrightError(
            f"the engine gave no usable logits (highest value {highest.max()}): its numbers "
            f"overflow, or its files are damaged; run `enginewright verify` on the artifact"
        )


def log_normaliser(logits: Logits) -> float:
    """log(sum(exp(logits))), so that logits minus it are log probabilities."""
    with np.errstate(invalid="ignore"):  # logits that are no numbers give one that is none
        total = weights_of(logits).sum(dtype=np.float64)
    return float(logits.max()) + math.log(float(total))


def likeliest(logits: Logits, token: int, count: int, normaliser: float | None = None) -> Scores:
    """The token first, then the ``count`` likeliest ones in order (-1: all)."""
    normaliser = log_normaliser(logits) if normaliser is None else normaliser
    scores = {token: (float(logits[token]) - normaliser, rank(logits, token))}
    count = logits.size if count == -1 else min(count, logits.size)
    if count:
        order = highest(logits, count)
        values = (logits[order].astype(np.float64) - normaliser).tolist()
        for position, (other, value) in enumerate(zip(order.tolist(), values, strict=True), 1):
            scores[other] = (value, scores[token][1] if other == token else position)
    return scores


def named(logits: Logits, token: int, ids: Ids) -> Scores:
    """The token first, then ids in their order, each with its true rank."""
    normaliser = log_normaliser(logits)
    wanted = np.concatenate((np.array([token], np.int64), ids))
    values = (logits[wanted].astype(np.float64) - normaliser).tolist()
    triples = zip(wanted.tolist(), values, ranks(logits, wanted), strict=True)
    return {each: (value, position) for each, value, position in triples}


def rank(logits: Logits, token: int) -> int:
    """How many tokens are at least as likely, itself included."""
    return int(np.count_nonzero(logits >= logits[token]))


def ranks(logits: Logits, ids: Ids) -> list[int]:
    """``rank`` of each id, in one look at the vocabulary."""
    values = logits[ids]
    ordered = np.sort(logits[logits >= values.min()])
    below = np.searchsorted(ordered, values, side="left")
    return [int(count) for count in ordered.size - below]


def prompt_scores(rows: Logits, tokens: Sequence[int], count: int) -> list[Scores]:
    """For each row, the prompt's next token and the ``count`` likeliest ones."""
    return [likeliest(row, token, count) for row, token in zip(rows, tokens, strict=True)]


def token_matrix(rows: Logits, ids: Ids) -> NDArray[np.float32]:
    """Log probabilities [S, n] of the ids at each row."""
    matrix = np.empty((len(rows), len(ids)), np.float32)
    for at, row in enumerate(rows):
        matrix[at] = row[ids].astype(np.float64) - log_normaliser(row)
    return matrix


def check_logprobs(params: SamplingParams, max_logprobs: int | None) -> None:
    """Refuse to give more than ``max_logprobs`` for a position; None or -1: no limit."""
    if max_logprobs is None or max_logprobs == -1:
        return
    scored = params.prompt_logprob_token_ids
    asked = {
        "logprobs": params.logprobs if params.logprob_token_ids is None else None,
        "prompt_logprobs": params.prompt_logprobs,
        "the length of prompt_logprob_token_ids": None if scored is None else len(scored),
    }
    for name, count in asked.items():
        if count is not None and not 0 <= count <= max_logprobs:
            raise SamplingParamsError(
                f"{name}={count} is not legal: at most {max_logprobs} (max_logprobs); "
                f"-1 asks for the whole vocabulary"
            )
