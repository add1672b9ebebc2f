"""What a worker is asked to do, and the figures that follow from what it said.

Prompts are token ids drawn with a fixed seed: engines measured in turns get the same ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from enginewright.cli.bench.children import Sample
from enginewright.cli.bench.stats import Figure
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry, Manifest

DECODE_PROMPT = 32
BATCH = 8


@dataclass(frozen=True)
class Workload:
    """Token ids and counts; greedy, end-of-sequence tokens ignored."""

    threads: int
    warm_ids: list[int]
    """As long as ``prefill_ids``, other ids: run once before anything is timed."""
    prefill_ids: list[int]
    decode_prompts: list[list[int]]
    """The first one alone, then all of them together if there is more than one."""
    decode_tokens: int

    def at(self, model: str) -> dict[str, Any]:
        """Plain data for a worker that loads ``model``."""
        task = {"task": "speed", "rows": 0, "context": 0, "reuse": False}
        return {**asdict(self), **task, "model": model}


def make_workload(
    manifest: Manifest,
    engine: EngineEntry,
    threads: int,
    prompt_tokens: int,
    decode_tokens: int,
    rows: int | None = None,
) -> Workload:
    """A workload within the engine's limits; too much asked for is a usage error.

    ``rows`` None: as many as make one engine's table, or one where those are too many.
    """
    room = engine.limits.max_context - 1
    if prompt_tokens > room:
        raise click.UsageError(f"--prompt-tokens {prompt_tokens}: this engine takes at most {room}")
    short = min(DECODE_PROMPT, prompt_tokens)
    if short + decode_tokens > room:
        most = room - short
        raise click.UsageError(f"--decode-tokens {decode_tokens}: this engine takes at most {most}")
    most = most_rows(engine)
    rows = rows or (BATCH if most >= BATCH else 1)
    if rows > most:
        raise click.UsageError(f"--rows {rows}: this engine takes at most {most}")
    draw = random.Random(20)
    ordinary = ordinary_ids(manifest, engine)
    return Workload(
        threads=threads,
        warm_ids=draw.choices(ordinary, k=prompt_tokens),
        prefill_ids=draw.choices(ordinary, k=prompt_tokens),
        decode_prompts=[draw.choices(ordinary, k=short) for _ in range(rows)],
        decode_tokens=decode_tokens,
    )


def most_rows(engine: EngineEntry) -> int:
    """How many rows a decode step takes."""
    return min(engine.limits.max_batch, engine.steps.decode)


def weight_files(artifact: Artifact) -> list[str]:
    """The files of the preferred engine's weights: all of its own but graph and operators."""
    engine = artifact.engine()
    return [name for name in engine.files if name not in (engine.model, engine.library)]


def weight_bytes(artifact: Artifact) -> int:
    """Their size."""
    return sum(artifact.manifest.files[name].size for name in weight_files(artifact))


def ordinary_ids(manifest: Manifest, engine: EngineEntry) -> list[int]:
    """All token ids that end nothing."""
    return sorted(set(range(engine.vocab_size)) - set(manifest.eos_token_ids))


def figures(work: Workload, samples: Sequence[Sample]) -> list[Figure]:
    """The table of one engine; a figure that could not be taken is left out."""
    prompt, tokens, rows = len(work.prefill_ids), work.decode_tokens, len(work.decode_prompts)
    said = [sample.said for sample in samples]
    taken = [
        ("load", "s", [one["load_s"] for one in said]),
        (f"first token of {prompt}", "ms", [one["first_token_s"] * 1e3 for one in said]),
        (f"prefill {prompt}", "tokens/s", [prompt / one["first_token_s"] for one in said]),
        ("decode, 1 row", "tokens/s", _rates(tokens, [one["decode_s"] for one in said])),
        (
            f"decode, {rows} rows",
            "tokens/s",
            _rates(rows * tokens, [one["batch_s"] for one in said]),
        ),
        ("peak memory", "MB", [s.peak_rss / 1e6 for s in samples if s.peak_rss]),
        ("peak anonymous", "MB", [s.peak_anonymous / 1e6 for s in samples if s.peak_anonymous]),
    ]
    return [Figure(name, unit, tuple(values)) for name, unit, values in taken if values]


def _rates(count: int, seconds: Sequence[float | None]) -> list[float]:
    """``count`` a second; a difference of two times that noise made negative tells nothing."""
    return [count / taken for taken in seconds if taken is not None and taken > 0]
