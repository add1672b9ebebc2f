"""Arguments that the measurements of one artifact share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from enginewright.cli.engine_options import ArtifactName

Function = Callable[..., Any]

_THREADS = click.IntRange(min=1)


def measurement(runs: int) -> Callable[[Function], Function]:
    """ARTIFACT, --runs, --threads and --json; ``runs`` is the default of the first option."""
    parts = (
        click.argument("artifact", type=ArtifactName(path_type=Path)),
        click.option("--runs", type=click.IntRange(min=1), default=runs, show_default=True),
        click.option("--threads", type=_THREADS, help="By default all cores."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )

    def apply(function: Function) -> Function:
        for part in reversed(parts):
            function = part(function)
        return function

    return apply
