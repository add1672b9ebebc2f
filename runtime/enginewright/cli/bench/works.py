"""The work that engines are compared on, and the figure that each sample of it gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from enginewright.cli.bench.children import Sample
from enginewright.runtime.artifact.manifest import LimitsEntry

SHORT = 32
"""Tokens of the prompts that decoding starts from."""
OPENING, ANSWER, QUESTION, TURNS = 60, 40, 30, 10
"""Of a conversation: its first turn; then, in turns, the model's and the user's."""
SHARED, OWN, REQUESTS, OUTPUT = 1000, 16, 16, 8
"""Of requests that begin alike: tokens in common and of their own, how many, output tokens."""

Draw = Callable[..., list[int]]
Ask = Callable[[Draw], dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """One row of the comparison.

    ``task`` and what ``ask`` draws are for workers/measure.py; ``rows`` and ``context`` are the
    most that it takes. ``figure`` makes one number of a sample and of the size of the weights.
    """

    name: str
    title: str
    unit: str
    task: str
    rows: int
    context: int
    ask: Ask
    figure: Callable[[Sample, int], float]
    reuse: bool = False

    @property
    def more_is_better(self) -> bool:
        return self.unit == "tokens/s"

    def fits(self, limits: LimitsEntry, rows: int) -> bool:
        """Whether an engine with these limits, and so many rows in a step, can do it."""
        return self.rows <= rows and self.context <= limits.max_context

    def request(self, ordinary: Sequence[int], threads: int) -> dict[str, Any]:
        """Plain data for a worker but for the model; the same at every call."""
        draw = partial(random.Random(self.name).choices, ordinary)
        asked = {"task": self.task, "rows": self.rows, "context": self.context}
        return {**asked, "threads": threads, "reuse": self.reuse, **self.ask(draw)}

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times better ``ours`` is."""
        if min(ours, theirs) <= 0:  # less than the weights' size was ever resident
            return float("nan")
        return ours / theirs if self.more_is_better else theirs / ours


def decoding(rows: int, prompt: int, tokens: int) -> Work:
    """Tokens a second after the first; of several rows, in sum."""
    name = f"decode-{rows}" if prompt == SHORT else f"decode-at-{prompt}"
    title = "decode, 1 stream" if rows == 1 else f"decode, {rows} streams"
    if prompt != SHORT:
        title = f"decode at {prompt:,} tokens of context"
    one: Ask = lambda draw: {  # noqa: E731
        "warm": draw(k=SHORT),
        "prompt": draw(k=prompt),
        "tokens": tokens + 1,
    }
    many: Ask = lambda draw: {  # noqa: E731
        "prompts": [draw(k=prompt) for _ in range(rows)],
        "tokens": tokens,
    }
    return Work(
        name,
        title,
        "tokens/s",
        "one_stream" if rows == 1 else "many_streams",
        rows,
        prompt + tokens + 1,
        one if rows == 1 else many,
        lambda sample, _: rows * tokens / sample.said["rest_s"],
    )


def prefill(tokens: int) -> Work:
    return Work(
        f"prefill-{tokens}",
        f"prefill of {tokens:,} tokens",
        "ms",
        "one_stream",
        1,
        tokens + 2,
        lambda draw: {"warm": draw(k=min(tokens, 512)), "prompt": draw(k=tokens), "tokens": 1},
        lambda sample, _: float(sample.said["first_s"] * 1e3),
    )


CHAT = Work(
    "chat",
    f"a chat of {TURNS} turns, first tokens in sum",
    "ms",
    "chat",
    1,
    OPENING + TURNS * ANSWER + (TURNS - 1) * QUESTION,
    lambda draw: {
        "warm": draw(k=OPENING),
        "turns": [draw(k=QUESTION if turn else OPENING) for turn in range(TURNS)],
        "tokens": ANSWER,
    },
    lambda sample, _: float(sample.said["waited_s"] * 1e3),
    reuse=True,
)


def _alike(draw: Draw) -> dict[str, Any]:
    shared = draw(k=SHARED)
    prompts = [shared + draw(k=OWN) for _ in range(REQUESTS)]
    return {"warm": draw(k=SHORT), "prompts": prompts, "tokens": OUTPUT}


ALIKE = Work(
    "shared-prefix",
    f"{REQUESTS} requests that share {SHARED:,} tokens",
    "ms",
    "together",
    REQUESTS,
    SHARED + OWN + OUTPUT,
    _alike,
    lambda sample, _: float(sample.said["whole_s"] * 1e3),
    reuse=True,
)
START = Work(
    "start",
    "process start to first token",
    "ms",
    "start",
    1,
    SHORT + 2,
    lambda draw: {"prompt": draw(k=SHORT)},
    lambda sample, _: (sample.said["reached"] - sample.started) * 1e3,
)
MEMORY = Work(
    "memory",
    "peak memory beyond the weights",
    "MB",
    "memory",
    1,
    1024,
    lambda draw: {"prompt": draw(k=512), "tokens": 64},
    lambda sample, weights: (sample.said["peak"] - weights) / 1e6,
)

WORKS: Mapping[str, Work] = {
    work.name: work
    for work in (
        decoding(1, SHORT, 128),
        decoding(8, SHORT, 64),
        decoding(32, SHORT, 64),
        prefill(512),
        prefill(4096),
        decoding(1, 8000, 32),
        CHAT,
        ALIKE,
        START,
        MEMORY,
    )
}
