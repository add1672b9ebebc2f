"""A worker: our server in this process, asked by a client in another; then the engine without it.

Reads {"model", "threads", "phases": [...]} (http_client.py has the phases) and prints {"phases":
[...]}: what the client saw of each, with the processor seconds of this process ("cpu_s") and of the
thread that runs the engine's steps in them ("step_cpu_s": all of the engine's where it has one
thread), and "offline": the same of an AsyncLLM without a server, for the kinds lone and streams.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from enginewright.cli.bench.workers.asking import over_http
from enginewright.runtime import AsyncLLM, SamplingParams
from enginewright.runtime.sampling.kinds import RequestOutputKind
from enginewright.server.app import build_app
from enginewright.server.life import Life, Server, uvicorn_config
from enginewright.server.options import ModelOptions, ServeOptions
from enginewright.server.registry import open_models


def main() -> None:
    work = json.load(sys.stdin)
    given = ModelOptions(model=work["model"], served_model_name=("m",), threads=work["threads"])
    options = ServeOptions(models=(given,), port=0, log_level="warning")
    models, life = open_models(options.models), Life.of(options)
    server = Server(uvicorn_config(build_app(options, models, life), options), life)
    running = threading.Thread(target=server.run, daemon=True)  # a failure here must end it
    running.start()
    while not server.started:
        if not running.is_alive():
            raise SystemExit("the server did not start")
        time.sleep(0.01)
    llm = next(iter(models)).engine
    steps = watch(llm)
    port = server.servers[0].sockets[0].getsockname()[1]
    said = over_http(port, work["phases"], lambda call: costs(call, steps))
    for phase, seen in zip(work["phases"], said, strict=True):
        if phase["kind"] in OFFLINE:
            ask = OFFLINE[phase["kind"]]
            seen["offline"] = costs(lambda: asyncio.run(ask(llm, phase)), steps)  # noqa: B023
    server.should_exit = True
    running.join()
    print(json.dumps({"phases": said}))


def watch(llm: AsyncLLM) -> list[float]:
    """Processor seconds of the thread that steps, of each step from now on."""
    engine: Any = llm._engine._core._engine  # no public call shows the engine's steps
    step, seconds = engine.step, list[float]()

    def timed(batch: Any) -> Any:
        started = time.thread_time()
        logits = step(batch)
        seconds.append(time.thread_time() - started)
        return logits

    engine.step = timed
    return seconds


def costs(call: Callable[[], dict[str, Any]], steps: list[float]) -> dict[str, Any]:
    steps.clear()
    started = time.process_time()
    seen = call()
    return {**seen, "cpu_s": time.process_time() - started, "step_cpu_s": sum(steps)}


async def lone(llm: AsyncLLM, phase: dict[str, Any]) -> dict[str, Any]:
    seconds = []
    for _ in range(phase["count"]):
        started = time.perf_counter()
        await follow(llm, phase["body"])
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds}


async def streams(llm: AsyncLLM, phase: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    first = await asyncio.gather(*(follow(llm, body) for body in phase["bodies"]))
    wall = time.perf_counter() - started
    return {"wall_s": wall, "first_s": [at - started for at in first]}


async def follow(llm: AsyncLLM, body: dict[str, Any]) -> float:
    """The same request as over HTTP; when its first output came."""
    prompt, stream = body["prompt"], body.get("stream", False)
    params = SamplingParams(
        temperature=0,
        max_tokens=body["max_tokens"],
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
    )
    first = None
    async for _ in llm.generate(prompt, params):
        first = first or time.perf_counter()
    assert first is not None
    return first


OFFLINE: dict[str, Any] = {"lone": lone, "streams": streams}

main()
