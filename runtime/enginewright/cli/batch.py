"""``enginewright batch``: a file of OpenAI batch requests, answered on this machine or over Ray."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginewright.cli.engine_options import THREADS
from enginewright.cli.extras import require

if TYPE_CHECKING:
    from enginewright.server.batch.output import BatchOutput
    from enginewright.server.options import ServeOptions

_EVERY = 10.0
_LINES_A_ROW = 2


@click.command(
    epilog="A line of INPUT is an object with custom_id, method, url and body, as in OpenAI's "
    "batches. Started again, the batch goes on with the lines that OUTPUT has no answer to."
)
@click.argument("input_file", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("output_file", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="ARTIFACT", help="The artifact that answers.")
@click.option(
    "--served-model-name", multiple=True, help="What bodies call the model. May be repeated."
)
@click.option("--max-num-seqs", type=int, help="Requests that run together.")
@click.option("--max-model-len", type=int, help="Tokens of prompt and output together.")
@click.option("--threads", type=THREADS, help="By default all that it may use.")
@click.option("--allow-native-code/--no-native-code", default=None)
@click.option("--tool-call-parser", help="By default seen from the model's template.")
@click.option("--reasoning-parser", help="By default seen from the model's template.")
@click.option("--ray", "over_ray", is_flag=True, help="Answer over Ray Data.")
@click.option("--ray-address", help="With --ray: the cluster; by default one on this machine.")
@click.option("--replicas", type=click.IntRange(min=1), default=1, help="With --ray: engines.  [1]")
@click.option("--num-cpus", type=float, default=1.0, help="With --ray: of each engine.  [1]")
@click.option("--num-gpus", type=float, default=0.0, help="With --ray: of each engine.  [0]")
def command(
    input_file: Path,
    output_file: Path,
    over_ray: bool,
    ray_address: str | None,
    replicas: int,
    num_cpus: float,
    num_gpus: float,
    **model: Any,
) -> None:
    """Answer every line of INPUT into OUTPUT. A wrong line is answered by its error."""
    require("serve", "fastapi", "uvicorn", "prometheus_client")
    if over_ray:
        require("ray", "ray")
    elif ray_address is not None:
        raise click.UsageError("--ray-address needs --ray")
    from enginewright.server.batch.lines import read_lines
    from enginewright.server.batch.output import BatchOutput

    if input_file.resolve() == output_file.resolve():
        raise click.UsageError("INPUT and OUTPUT are the same file: give another OUTPUT")
    total = sum(1 for _ in read_lines(input_file))
    options = _options(model)
    with BatchOutput(output_file) as output:
        left = [line for line in read_lines(input_file) if not output.has(line)]
        with _told(output, total) as progress:
            if over_ray:
                from enginewright.server.batch.over_ray import Resources, run_over_ray

                resources = Resources(replicas, num_cpus, num_gpus)
                run_over_ray(options, left, output, progress, resources, ray_address)
            elif left:
                _run_here(options, left, output, progress)


def _options(given: dict[str, Any]) -> ServeOptions:
    from enginewright.server.options import ServeOptions

    model = {name: value for name, value in given.items() if value not in (None, ())}
    # Nothing is refused for want of room: a batch waits.
    return ServeOptions.of([model | {"max_num_queued_reqs": 2**31}], {"access_log": False})


def _run_here(
    options: ServeOptions, left: Any, output: BatchOutput, progress: Callable[[], None]
) -> None:
    from enginewright.server.app import build_app
    from enginewright.server.batch.run import run_lines
    from enginewright.server.registry import open_models

    served = open_models(options.models)
    try:
        together = _LINES_A_ROW * next(iter(served)).engine.max_batch
        run_lines(build_app(options, served), left, output, together, progress)
    finally:
        served.close()


@contextlib.contextmanager
def _told(output: BatchOutput, total: int) -> Iterator[Callable[[], None]]:
    """What to call after each answer: says on stderr how far the batch is."""
    started = told = time.monotonic()
    before = output.done

    def say() -> None:
        seconds = time.monotonic() - started
        rate = (output.done - before) / seconds if seconds > 0 else 0.0
        click.echo(
            f"[{seconds:7.1f} s] {output.done} of {total} lines, {output.errors} of them errors, "
            f"{rate:.1f} lines/s",
            err=True,
        )

    def progress() -> None:
        nonlocal told
        if time.monotonic() - told >= _EVERY:
            told = time.monotonic()
            say()

    if before:
        click.echo(f"{before} of {total} lines are answered already", err=True)
    try:
        yield progress
    finally:
        say()
