"""Where vLLM's beam search and Hugging Face's differ, as data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from enginewright.runtime.beam_search.params import BeamSearchParams, EarlyStopping


@dataclass(frozen=True)
class Rules:
    """The choices of one algorithm."""

    candidates: int
    """Continuations that each beam offers."""
    pool: int | None
    """Of all that are offered, how many are looked at; None: all."""
    counted: int | None
    """An ended continuation counts only among so many of the best; None: always."""
    early_stopping: EarlyStopping
    real: type[np.float32] | type[np.float64]
    """What sums and scores are computed in."""


def rules_of(params: BeamSearchParams, ends: int) -> Rules:
    """The rules that the parameters ask for; ``ends``: tokens that end a beam."""
    return _hf(params, ends) if params.algorithm == "hf" else _vllm(params)


def _hf(params: BeamSearchParams, ends: int) -> Rules:
    width = params.beam_width
    # So many that, whichever of them end, width others are left to go on.
    looked_at = max(2, 1 + ends) * width
    return Rules(
        candidates=looked_at,
        pool=looked_at,
        counted=width,
        # There, one beam is greedy search: it ends where its likeliest token does.
        early_stopping=True if width == 1 else params.early_stopping,
        real=np.float32,
    )


def _vllm(params: BeamSearchParams) -> Rules:
    allowed = params.allowed_token_ids
    return Rules(
        candidates=2 * params.beam_width if allowed is None else len(allowed),
        pool=None,
        counted=None,
        # Its searches go on to max_tokens. Ending where no beam can still come among the best
        # gives the same result: see BeamSearch._settled.
        early_stopping="never",
        real=np.float64,
    )
