"""Times the plans that passed conformance on this machine: the fastest is to be preferred.

Every plan is run through the public API, in turns, so that what else the machine does falls on all
alike. The work is what users wait for:

| work    | what is timed                                                            |
|---------|--------------------------------------------------------------------------|
| decode  | a token of one request, after a prompt of 32 tokens                      |
| batch   | a token of each of 8 requests (or as many as the limits allow) together  |
| prefill | the first token after 512 tokens (or as many as the limits allow)        |
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.artifact.manifest import EngineEntry, TuningEntry
from enginewright.runtime.cores import available_cores
from enginewright.runtime.processor import processor_name

Works = Mapping[str, float]

_ROUNDS = 5
_TOKENS = 32
_SHORT_PROMPT = 32
_LONG_PROMPT = 512
_REQUESTS = 8


def tune(
    folder: Path, engines: Sequence[EngineEntry]
) -> tuple[tuple[EngineEntry, ...], TuningEntry]:
    """The engines of the artifact in ``folder``, the fastest first, and what was measured.

    Fastest: by the geometric mean over the work, with as many threads as LLM takes by itself.
    """
    opened = {
        entry.plan: LLM(
            folder,
            verify="never",
            plan=entry.plan,
            allow_native_code=True,
            enable_prefix_caching=False,
        )
        for entry in engines
    }
    try:
        rounds: dict[str, list[Works]] = {plan: [] for plan in opened}
        for llm in opened.values():
            _run(llm)  # what is done once is not what a plan is chosen for
        for _ in range(_ROUNDS):
            for plan, llm in opened.items():
                rounds[plan].append(_run(llm))
    finally:
        for llm in opened.values():
            llm.close()
    seconds = {plan: _medians(found) for plan, found in rounds.items()}
    order = sorted(engines, key=lambda entry: _mean(seconds[entry.plan]))
    return tuple(order), TuningEntry(processor_name(), available_cores(), seconds)


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
    start = time.perf_counter()
    llm.generate(ids, params, use_tqdm=False)
    return time.perf_counter() - start


def _medians(rounds: Sequence[Works]) -> dict[str, float]:
    return {work: median(found[work] for found in rounds) for work in rounds[0]}


def _mean(works: Works) -> float:
    return math.exp(sum(map(math.log, works.values())) / len(works))
