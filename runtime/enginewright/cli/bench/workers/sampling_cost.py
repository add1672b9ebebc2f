"""A worker: what it costs to choose the tokens of one step, without an engine.

Reads {"vocabulary", "rows", "steps", "prompt_tokens", "output_tokens", "mixes"}, where mixes are
fields of SamplingParams by name; prints the median seconds of a step of each mix.

V vocabulary.

| tensor | shape     | dtype   | meaning                                             |
|--------|-----------|---------|-----------------------------------------------------|
| logits | [rows, V] | float32 | drawn to be spread as those of a trained model are  |
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.requests.generation import Generation, Request
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import Sampler

# As measured on SmolLM2-135M over ordinary text: the body is nearly normal, and the r-th likeliest
# token lies at about 20 - 2.1 log(r) above its middle.
BODY_DEVIATION = 3.5
PEAK, FALL, RAISED = 20.0, 2.1, 100
WARM_STEPS = 2


def main() -> None:
    work = json.load(sys.stdin)
    draw = np.random.default_rng(20)
    logits = draw_logits(draw, work["rows"], work["vocabulary"])
    print(json.dumps({n: time_mix(m, work, draw, logits) for n, m in work["mixes"].items()}))


def draw_logits(draw: np.random.Generator, rows: int, vocabulary: int) -> NDArray[np.float32]:
    logits = (draw.standard_normal((rows, vocabulary)) * BODY_DEVIATION).astype(np.float32)
    peaks = PEAK - FALL * np.log(np.arange(1, min(RAISED, vocabulary) + 1))
    for row in logits:
        row[draw.choice(vocabulary, peaks.size, replace=False)] = peaks
    return logits


def time_mix(
    fields: dict[str, Any],
    work: dict[str, Any],
    draw: np.random.Generator,
    logits: NDArray[np.float32],
) -> float:
    """Seconds of the median step in which every row accepts a token."""
    generations = [begin(row, fields, work, draw) for row in range(work["rows"])]
    taken = []
    for step in range(WARM_STEPS + work["steps"]):
        pairs = list(zip(generations, np.roll(logits, step, axis=0), strict=True))
        started = time.perf_counter()
        accept(pairs)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[WARM_STEPS:])


def accept(pairs: Iterable[tuple[Generation, NDArray[np.float32]]]) -> None:
    for generation, row in pairs:
        generation.accept(row)


def begin(
    row: int, fields: dict[str, Any], work: dict[str, Any], draw: np.random.Generator
) -> Generation:
    """An output that has some tokens already."""
    prompt, output = (
        draw.integers(0, work["vocabulary"], work[name]).tolist()
        for name in ("prompt_tokens", "output_tokens")
    )
    params = SamplingParams(**fields, seed=row, max_tokens=None, ignore_eos=True, detokenize=False)
    generation = Generation(
        Request(row, None, tuple(prompt), params),
        Sampler(params, work["vocabulary"], (), prompt),
        max_context=sys.maxsize,
    )
    generation.output_token_ids.extend(output)
    return generation


main()
