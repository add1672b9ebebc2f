"""``enginewright bench``: the table of measurements; without a name, ``speed``."""

from __future__ import annotations

import click

from enginewright.cli.lazy import LazyGroup, Verb

VERBS = {
    "speed": Verb("enginewright.cli.bench.speed", "Prefill, decode, first token, load, memory."),
    "latency": Verb("enginewright.cli.bench.latency", "One stream: first token, between tokens."),
    "throughput": Verb("enginewright.cli.bench.throughput", "Many streams of mixed lengths."),
    "serving": Verb("enginewright.cli.bench.serving", "The server: HTTP's cost, many streams."),
    "memory": Verb("enginewright.cli.bench.memory", "Loaded, after a prompt, after many rows."),
    "roofline": Verb("enginewright.cli.bench.roofline", "Steps beside what memory allows."),
    "profile": Verb("enginewright.cli.bench.profile", "Which operators a decode step runs in."),
    "startup": Verb("enginewright.cli.bench.startup", "Process start, import, environment's size."),
    "sampler": Verb("enginewright.cli.bench.sampler", "The cost of choosing a step's tokens."),
    "reuse": Verb("enginewright.cli.bench.reuse", "What sharing the KV cache saves and costs."),
    "speculation": Verb(
        "enginewright.cli.bench.speculation", "Drafted tokens beside plain decoding."
    ),
    "peers": Verb("enginewright.cli.bench.peers", "Beside another engine, in turns."),
}


@click.group(
    cls=LazyGroup,
    verbs=VERBS,
    default="speed",
    subcommand_metavar="[COMMAND] ARTIFACT [ARGS]...",
)
def command() -> None:
    """Measure an artifact on this machine; `bench ARTIFACT` is `bench speed ARTIFACT`."""
