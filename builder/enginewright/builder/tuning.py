"""Times what passed conformance on this machine, plans and kernels: the fastest is to be preferred.

Each is run through the public API, in turns, so that what else the machine does falls on all alike.
The work is what users wait for:

| work    | what is timed                                                            |
|---------|--------------------------------------------------------------------------|
| decode  | a token of one request, after a prompt of 32 tokens                      |
| batch   | a token of each of 8 requests (or as many as the limits allow) together  |
| prefill | the first token after 512 tokens (or as many as the limits allow)        |
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.artifact.manifest import EngineEntry, TuningEntry
from enginewright.runtime.cores import available_cores
from enginewright.runtime.errors import ConformanceError
from enginewright.runtime.processor import CPU_KERNELS, InstructionSet, processor_name

TuneFor = Literal["all", "decode", "batch", "prefill"]
"""The work that decides; "all": the geometric mean over them."""
Works = Mapping[str, float]
Conformance = Mapping[str, Any]
Progress = Callable[[str], None]

_OTHERS: Mapping[InstructionSet, tuple[InstructionSet, ...]] = {"amx": ("avx512vnni",)}
"""Kernels that may be faster than the best that a processor has: vectors where it is tiles, which
gain with many rows and lose with one. Any others lose to those that come after them."""
_ROUNDS = 5
_TOKENS = 32
_SHORT_PROMPT = 32
_LONG_PROMPT = 512
_REQUESTS = 8


@dataclass(frozen=True)
class Candidate:
    """An engine with the kernels that it is held to, and what conformance found of the two."""

    entry: EngineEntry
    conformance: Conformance

    @property
    def kernels(self) -> str:
        """Those held to; "" where there is nothing to choose."""
        return self.entry.cpu_kernels or ""

    def __str__(self) -> str:
        return f"plan {self.entry.plan}" + (f", kernels {self.kernels}" if self.kernels else "")


@dataclass(frozen=True)
class Tuned:
    """The fastest candidate of each plan, the fastest plan first, and what was measured of all."""

    candidates: tuple[Candidate, ...]
    entry: TuningEntry


def candidates(
    engines: Sequence[EngineEntry],
    conformance: Mapping[str, Conformance],
    check: Callable[[EngineEntry], Conformance],
    progress: Progress,
) -> Iterator[Candidate]:
    """The engines, and each again with other kernels that may be faster on this processor.

    ``conformance``: of each plan with the best kernels. ``check`` is asked for that with others,
    which are left out if it raises ConformanceError. Where ENGINEWRIGHT_CPU_KERNELS has chosen
    there are none.
    """
    for entry in engines:
        found = conformance[entry.plan]
        best = found.get("cpu_kernels")
        others = _others(entry, best)
        if not others:
            yield Candidate(entry, found)
            continue
        yield Candidate(replace(entry, cpu_kernels=best), found)
        for other in others:
            held = replace(entry, cpu_kernels=other)
            try:
                yield Candidate(held, check(held))
            except ConformanceError as error:
                progress(f"kernels {other} are left out: {error}")


def tune(
    folder: Path, candidates: Sequence[Candidate], progress: Progress, by: TuneFor = "all"
) -> Tuned:
    """Time the candidates, whose artifact is in ``folder``, with as many threads as LLM takes."""
    rounds: list[list[Works]] = [[] for _ in candidates]
    with ExitStack() as open_:
        opened = [open_.enter_context(LLM.over(folder, each.entry)) for each in candidates]
        for llm in opened:
            _run(llm)  # what is done once is not what is chosen by
        for _ in range(_ROUNDS):
            for llm, found in zip(opened, rounds, strict=True):
                found.append(_run(llm))
    timed = list(zip(candidates, map(_medians, rounds), strict=True))
    for each, works in timed:
        progress(f"{each}: {', '.join(f'{name} {s * 1e3:.1f} ms' for name, s in works.items())}")
    return _choose(timed, by)


def _choose(timed: Sequence[tuple[Candidate, Works]], by: TuneFor) -> Tuned:
    fastest: dict[str, tuple[Candidate, Works]] = {}
    kernels: dict[str, dict[str, Works]] = {}
    for each, works in sorted(timed, key=lambda pair: _cost(pair[1], by)):
        fastest.setdefault(each.entry.plan, (each, works))
        if each.kernels:
            kernels.setdefault(each.entry.plan, {})[each.kernels] = works
    seconds = {plan: works for plan, (_, works) in fastest.items()}
    entry = TuningEntry(processor_name(), available_cores(), seconds, kernels, by)
    return Tuned(tuple(each for each, _ in fastest.values()), entry)


def _others(entry: EngineEntry, best: InstructionSet | None) -> tuple[InstructionSet, ...]:
    # Without 4-bit weights an engine has the same kernels with tiles and without.
    if best is None or entry.precision != "int4" or os.environ.get(CPU_KERNELS):
        return ()
    return _OTHERS.get(best, ())


def _run(llm: LLM) -> Works:
    room = llm.max_context - _TOKENS
    short, long = min(_SHORT_PROMPT, room // 2), min(_LONG_PROMPT, room)
    rows = min(_REQUESTS, llm.max_batch)
    alone, first = _seconds(llm, 1, short, _TOKENS), _seconds(llm, 1, short, 1)
    together, firsts = _seconds(llm, rows, short, _TOKENS), _seconds(llm, rows, short, 1)
    return {
        "decode": max(alone - first, 1e-9) / (_TOKENS - 1),
        "batch": max(together - firsts, 1e-9) / (_TOKENS - 1),
        "prefill": _seconds(llm, 1, long, 1),
    }


def _seconds(llm: LLM, requests: int, prompt: int, tokens: int) -> float:
    # Ids that any vocabulary has; which they are makes no difference to the time.
    ids = np.random.default_rng(requests).integers(0, 32, (requests, prompt)).tolist()
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    llm.reset_prefix_cache()
    start = time.perf_counter()
    llm.generate(ids, params, use_tqdm=False)
    return time.perf_counter() - start


def _medians(rounds: Sequence[Works]) -> dict[str, float]:
    return {work: median(found[work] for found in rounds) for work in rounds[0]}


def _cost(works: Works, by: TuneFor) -> float:
    if by != "all":
        return works[by]
    return math.exp(sum(map(math.log, works.values())) / len(works))
