"""``enginewright build``: a recipe becomes an artifact."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from enginewright.cli.extras import require
from enginewright.runtime.errors import RecipeError

NEEDED = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "pydantic", "yaml")


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a field of the recipe, such as precision=int8 or limits.max_batch=4.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("artifacts"),
    show_default=True,
    help="Folder in which the artifact's own folder is made.",
)
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Tell of each stage on stderr; by default only in a terminal.",
)
def command(recipe: Path, overrides: tuple[str, ...], output: Path, progress: bool | None) -> None:
    """Build the artifact that RECIPE describes and print its path.

    The artifact is checked against the Hugging Face model before it is published; when a stage
    fails, an artifact of an earlier build stays as it was.
    """
    require("build", *NEEDED)
    require("cpu", "onnxruntime")
    from enginewright.builder.recipe import load_recipe
    from enginewright.builder.recipe_yaml import parse_override

    for override in overrides:
        try:
            parse_override(override)
        except RecipeError as error:
            raise click.UsageError(str(error)) from error
    read = load_recipe(recipe, overrides)
    from enginewright.builder.pipeline import build

    shown = sys.stderr.isatty() if progress is None else progress
    click.echo(build(read, output, progress=_stage_lines() if shown else _silent))


def _stage_lines() -> Callable[[str], None]:
    started = time.monotonic()

    def tell(stage: str) -> None:
        click.echo(f"[{time.monotonic() - started:6.1f} s] {stage}", err=True)

    return tell


def _silent(stage: str) -> None:
    """In a pipe the artifact's path is all that is said."""
