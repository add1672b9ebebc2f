"""Is an engine near the model it runs? Top-1 agreement and perplexity on a text of the bench's own.

The text (data/text.txt) is in no build: neither conformance nor calibration reads it. What one
model answers is kept beside the other caches, since it does not change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enginewright.cli.bench.environment import bench_folder

WINDOW = 512
MIN_TOP1, MAX_INCREASE = 0.95, 0.01
TEXT = Path(__file__).parent / "data" / "text.txt"

Scores = Mapping[str, Sequence[Any]]
"""``best`` [N] token ids and ``logprobs`` [N] of the text's own next token, by position."""


@dataclass(frozen=True)
class Quality:
    """How far an engine is from the model in fp32, over ``positions`` predictions."""

    top1: float
    perplexity: float
    reference_perplexity: float
    positions: int

    @property
    def increase(self) -> float:
        """Of the perplexity, relative to the model's own."""
        return self.perplexity / self.reference_perplexity - 1

    @property
    def near_lossless(self) -> bool:
        return self.top1 >= MIN_TOP1 and abs(self.increase) <= MAX_INCREASE

    @property
    def grade(self) -> str:
        """The class that ratios are taken in."""
        return "near-lossless" if self.near_lossless else "lossy"

    def as_data(self) -> dict[str, Any]:
        """Plain data for --json."""
        return {
            "top1_agreement": self.top1,
            "perplexity": self.perplexity,
            "perplexity_change": self.increase,
            "positions": self.positions,
            "class": self.grade,
        }


def compare(scores: Scores, reference: Scores) -> Quality:
    """One engine's scores beside those of the model in fp32."""
    agreed = np.asarray(scores["best"]) == np.asarray(reference["best"])
    ours, theirs = (float(np.exp(-np.mean(one["logprobs"]))) for one in (scores, reference))
    return Quality(float(agreed.mean()), ours, theirs, len(agreed))


def windows(encode: Callable[[str], Sequence[int]], most: int) -> list[list[int]]:
    """The text as token ids, in pieces of WINDOW or of ``most``, whichever is less."""
    ids, size = list(encode(TEXT.read_text("utf-8"))), min(WINDOW, most)
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [piece for piece in pieces if len(piece) > size // 2] or pieces


def kept(key: Mapping[str, Any], take: Callable[[], Scores]) -> Scores:
    """Scores from the cache, or taken now and kept; ``key`` says all that they depend on."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = bench_folder("quality") / f"{name}.json"
    if path.exists():
        found: Scores = json.loads(path.read_text("utf-8"))
        return found
    taken = take()
    scores = {name: list(taken[name]) for name in ("best", "logprobs")}
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(scores), "utf-8")
    scratch.rename(path)
    return scores
