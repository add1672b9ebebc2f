"""A worker: measures one engine in this process.

``python measure.py ENGINE`` imports ENGINE from this folder and opens its class, ``Engine(model,
threads, rows, context, reuse)``: so many rows of so many tokens at most (0: what the model is made
for), ``reuse`` whether it may keep what earlier prompts computed. It has

    generate(prompts, tokens) -> tokens of each row     prompts are lists of ids of equal length
    stream(prompt, tokens, tick) -> tokens              tick is called when each of them has come
    score(ids) -> logits [len(ids), vocabulary]         of what follows each of the ids

all of them greedy, end-of-sequence tokens ignored. Engines have environments of their own, so that
nothing here may import enginewright; numpy is in all of them.

A workload (JSON, on stdin) has the fields ``task``, one of TASKS, ``model``, ``threads``, ``rows``,
``context``, ``reuse``, and what the task names; ``options``, if given, has further arguments of the
engine. The answer is one line of JSON; an engine that has several plans says which one it runs.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = dict[str, Any]
Said = dict[str, Any]


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    work = json.load(sys.stdin)
    started = time.perf_counter()
    engine = module.Engine(
        work["model"],
        work["threads"],
        work["rows"],
        work["context"],
        work["reuse"],
        **work.get("options", {}),
    )
    load = time.perf_counter() - started
    plan = {"plan": engine.plan} if hasattr(engine, "plan") else {}
    print(json.dumps({"load_s": load, **plan, **TASKS[work["task"]](engine, work)}))


def timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def follow(engine: Any, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
    """The tokens, and after how many seconds each of them came."""
    started, times = time.perf_counter(), list[float]()
    answer = engine.stream(prompt, tokens, lambda: times.append(time.perf_counter() - started))
    return answer, times


def one_stream(engine: Any, work: Work) -> Said:
    """``warm``, ``prompt``, ``tokens``: the first token's time, and that of those after it."""
    follow(engine, work["warm"], 2)
    _, times = follow(engine, work["prompt"], work["tokens"])
    return {"first_s": times[0], "rest_s": times[-1] - times[0]}


def many_streams(engine: Any, work: Work) -> Said:
    """``prompts``, ``tokens``: the time of the tokens after each row's first."""
    prompts, tokens = work["prompts"], work["tokens"]
    engine.generate(prompts, 2)
    first = timed(lambda: engine.generate(prompts, 1))
    whole = timed(lambda: engine.generate(prompts, tokens + 1))
    return {"rest_s": whole - first}


def together(engine: Any, work: Work) -> Said:
    """``warm``, ``prompts``, ``tokens``: the time of prompts that begin alike."""
    engine.generate([work["warm"]], 2)
    return {"whole_s": timed(lambda: engine.generate(work["prompts"], work["tokens"]))}


def chat(engine: Any, work: Work) -> Said:
    """``warm``, ``turns``, ``tokens``: the first tokens' times, summed over a conversation."""
    follow(engine, work["warm"], 2)
    history, waited = list[int](), 0.0
    for turn in work["turns"]:
        history += turn
        answer, times = follow(engine, history, work["tokens"])
        history += answer
        waited += times[0]
    return {"waited_s": waited}


def start(engine: Any, work: Work) -> Said:
    """``prompt``: when the first token came, on the clock that all processes share."""
    engine.stream(work["prompt"], 1, lambda: None)
    return {"reached": time.monotonic()}


def memory(engine: Any, work: Work) -> Said:
    """``prompt``, ``tokens``: the most bytes that were ever resident."""
    engine.stream(work["prompt"], work["tokens"], lambda: None)
    lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return {"peak": peak * 1024}


def quality(engine: Any, work: Work) -> Said:
    """``windows`` of ids: after each of them, the likeliest token, and the log probability of the
    one that does follow.
    """
    import numpy as np

    best, logprobs = list[int](), list[float]()
    for ids in work["windows"]:
        logits = np.asarray(engine.score(ids))[: len(ids) - 1].astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        logprobs += (logits[np.arange(len(ids) - 1), ids[1:]] - total).tolist()
        best += logits.argmax(axis=1).tolist()
    return {"best": best, "logprobs": logprobs}


def speed(engine: Any, work: Work) -> Said:
    """``warm_ids``, ``prefill_ids``, ``decode_prompts``, ``decode_tokens``: a little of all."""
    first = one_stream(
        engine, {"warm": work["warm_ids"], "prompt": work["prefill_ids"], "tokens": 1}
    )
    prompts, tokens = work["decode_prompts"], work["decode_tokens"]
    alone, together = (
        many_streams(engine, {"prompts": rows, "tokens": tokens})["rest_s"] if rows else None
        for rows in (prompts[:1], prompts if len(prompts) > 1 else [])
    )
    return {"first_token_s": first["first_s"], "decode_s": alone, "batch_s": together}


TASKS: dict[str, Callable[[Any, Work], Said]] = {
    task.__name__: task
    for task in (one_stream, many_streams, together, chat, start, memory, quality, speed)
}

if __name__ == "__main__":
    main()
