"""``enginewright bench serving``: what HTTP costs, many streams, and a long prompt among them.

The client is a process of its own that reads plain sockets; llama.cpp's server is asked by the same
client for the same tokens.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import WORKERS, Sample, sample
from enginewright.cli.bench.options import measurement
from enginewright.cli.bench.stats import Figure, figures_data
from enginewright.cli.bench.turns import remark, take_turns
from enginewright.cli.bench.workload import most_rows, ordinary_ids
from enginewright.cli.extras import require
from enginewright.cli.text import table
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends import load_backend

OURS, LLAMA_CPP = "enginewright", "llama.cpp"
LONE, WARM_UP = 100, 10
AFTER, STREAMED = 20, 1000
"""Events of a stream before the long prompt arrives, and tokens that it may have at most."""
PROMPT = 32


@click.command(
    epilog="Greedy, end tokens ignored, /v1/completions. HTTP adds: the median of lone requests of "
    "one token less that of the same by AsyncLLM. Outside of steps: processor time of the server "
    "beyond that of the engine's steps, per step's; told with --threads 1, where a step is the "
    "work of one thread. The longest pause is that of a stream during which a long prompt arrives."
)
@click.option("--streams", type=click.IntRange(min=2), help="At once; 32, or the engine's rows.")
@click.option("--tokens", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(min=1), help="Of the long prompt; 4000.")
@click.option("--llama-server", type=click.Path(exists=True, dir_okay=False), help="Its program.")
@click.option("--gguf", type=click.Path(exists=True, dir_okay=False), help="Its model.")
@measurement(runs=3)
def command(
    artifact: Path,
    streams: int | None,
    tokens: int,
    prompt_tokens: int | None,
    llama_server: str | None,
    gguf: str | None,
    runs: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the server with ARTIFACT, beside llama.cpp's if its program is given."""
    if (llama_server is None) != (gguf is None):
        raise click.UsageError("--llama-server and --gguf go together")
    opened = Artifact.open(artifact)
    engine = opened.engine()
    load_backend(engine.target)
    require("serve", "fastapi", "uvicorn", "prometheus_client")
    rows = streams or min(32, most_rows(engine))
    room = engine.limits.max_context
    long = prompt_tokens or min(4000, room - 2)
    longest = max(long + 1, PROMPT + tokens)
    if longest > room:
        raise click.UsageError(f"{longest} tokens are asked for: this engine takes {room}")
    longest = max(longest, min(room, PROMPT + STREAMED))
    count = threads or machine.cores()
    stream = longest - PROMPT
    phases = _phases(ordinary_ids(opened.manifest, engine), rows, tokens, stream, long)
    work = {"model": str(artifact.resolve()), "threads": count, "phases": phases}
    takes = {OURS: partial(sample, (sys.executable, WORKERS / "served.py"), work, poll=False)}
    if llama_server is not None:
        other = {**work, "server": llama_server, "model": gguf, "rows": rows, "context": longest}
        command = (sys.executable, WORKERS / "llama_server.py")
        takes[LLAMA_CPP] = partial(sample, command, other, poll=False)
    taken = take_turns(takes, runs, "measuring")
    found = {name: list(figures(phases, one.used, exact=count == 1)) for name, one in taken.items()}
    if as_json:
        click.echo(json.dumps(_data(opened, count, found), indent=2))
        return
    click.echo("\n".join(_page(opened, count, found)))
    for name, samples in taken.items():
        if note := remark(name, samples):
            click.echo(f"\n{note}", err=True)


def _phases(
    ids: Sequence[int], rows: int, tokens: int, streamed: int, long: int
) -> list[dict[str, Any]]:
    """Lone requests, streams at once (twice, the first to warm up), and a prompt among them."""
    draw = partial(random.Random(20).choices, ids)
    fixed = {"model": "m", "temperature": 0, "ignore_eos": True}
    lone = {**fixed, "prompt": "Once upon a time", "max_tokens": 1}
    bodies = [
        [
            {**fixed, "prompt": draw(k=PROMPT), "max_tokens": tokens, "stream": True}
            for _ in range(rows)
        ]
        for _ in range(2)
    ]
    stream = {**fixed, "prompt": draw(k=PROMPT), "max_tokens": streamed, "stream": True}
    prompt = {**fixed, "prompt": draw(k=long), "max_tokens": 1}
    return [
        {"kind": "lone", "body": lone, "count": WARM_UP},
        {"kind": "lone", "body": lone, "count": LONE},
        *({"kind": "streams", "bodies": each} for each in bodies),
        {"kind": "meet", "stream": stream, "prompt": prompt, "after": AFTER},
    ]


def figures(
    phases: Sequence[Mapping[str, Any]], samples: Sequence[Sample], *, exact: bool
) -> Iterator[Figure]:
    """Of one server; ``exact``: a step's processor time is that of its thread."""
    _, lone, _, many, meet = zip(*(one.said["phases"] for one in samples), strict=True)
    bodies = phases[3]["bodies"]
    tokens = sum(body["max_tokens"] for body in bodies)
    ours = "offline" in lone[0]
    http = [_median(one["seconds"]) for one in lone]
    yield Figure("lone request", "ms", tuple(1e3 * each for each in http))
    if ours:
        plain = [_median(one["offline"]["seconds"]) for one in lone]
        added = zip(http, plain, strict=True)
        yield Figure("HTTP adds", "ms", tuple(1e3 * (a - b) for a, b in added))
    name = f"{len(bodies)} streams"
    yield Figure(name, "tokens/s", tuple(tokens / one["wall_s"] for one in many))
    if ours:
        rates = tuple(tokens / one["offline"]["wall_s"] for one in many)
        yield Figure(f"{name}, offline", "tokens/s", rates)
    for share in (50, 99):
        firsts = tuple(1e3 * float(np.percentile(one["first_s"], share)) for one in many)
        yield Figure(f"{name}, first token, p{share}", "ms", firsts)
    cpu = tuple(1e6 * one["cpu_s"] / tokens for one in many)
    yield Figure(f"{name}, server's CPU", "us a token", cpu)
    if ours and exact:
        for title, seen in (("", many), (", offline", [one["offline"] for one in many])):
            shares = tuple(100 * (one["cpu_s"] / one["step_cpu_s"] - 1) for one in seen)
            yield Figure(f"{name}{title}, outside of steps", "%", shares)
    clients = tuple(1e6 * one["client_cpu_s"] / tokens for one in many)
    yield Figure(f"{name}, client's CPU", "us a token", clients)
    alone = tuple(1e3 * _median(one["alone_s"]) for one in meet)
    yield Figure("a stream, between tokens", "ms", alone)
    length = len(phases[4]["prompt"]["prompt"])
    pauses = tuple(1e3 * max(one["during_s"], default=one["prompt_s"]) for one in meet)
    yield Figure(f"longest pause while {length} tokens arrive", "ms", pauses)
    yield Figure("... and their first token", "ms", tuple(1e3 * one["prompt_s"] for one in meet))


def _median(seconds: Sequence[float]) -> float:
    return float(np.median(seconds))


def _page(artifact: Artifact, threads: int, found: Mapping[str, Sequence[Figure]]) -> Iterator[str]:
    where = machine.describe()
    yield f"{artifact.manifest.name}, {threads} threads"
    yield f"{where['processor']}, {where['cores']} cores\n"
    by_name = {name: {one.name: one for one in rows} for name, rows in found.items()}
    lines = [
        (f"{one.name} ({one.unit})", *(_cell(rows.get(one.name)) for rows in by_name.values()))
        for one in found[OURS]
    ]
    yield table(("measure", *found), lines)


def _cell(figure: Figure | None) -> str:
    return "-" if figure is None else figure.cell()


def _data(
    artifact: Artifact, threads: int, found: Mapping[str, Sequence[Figure]]
) -> dict[str, Any]:
    return {
        "artifact": artifact.manifest.name,
        "threads": threads,
        "machine": machine.describe(),
        "servers": {name: figures_data(rows) for name, rows in found.items()},
    }
