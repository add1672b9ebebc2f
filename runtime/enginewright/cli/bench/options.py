"""Arguments that the measurements of one artifact share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from enginewright.cli.engine_options import THREADS, ArtifactName
from enginewright.runtime.cores import warn_of_threads

Function = Callable[..., Any]


class FiniteRange(click.FloatRange):
    """A FloatRange without nan, which every comparison lets pass, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number", param, ctx)
        return found


def _told(context: click.Context, parameter: click.Parameter, threads: int | None) -> int | None:
    """What engines log in child processes is not seen."""
    warn_of_threads(threads)
    return threads


def threads_option(help: str = "By default all cores.", **more: Any) -> Callable[..., Any]:
    """Adds --threads, passed on as ``threads``."""
    return click.option("--threads", type=THREADS, callback=_told, help=help, **more)


def measurement(runs: int) -> Callable[[Function], Function]:
    """ARTIFACT, --runs, --threads and --json; ``runs`` is the default of the first option."""
    parts = (
        click.argument("artifact", type=ArtifactName(path_type=Path)),
        click.option("--runs", type=click.IntRange(min=1), default=runs, show_default=True),
        threads_option(),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )

    def apply(function: Function) -> Function:
        for part in reversed(parts):
            function = part(function)
        return function

    return apply
