"""``enginewright build``: a recipe becomes an artifact."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginewright.cli.extras import require
from enginewright.runtime.errors import RecipeError

if TYPE_CHECKING:
    from enginewright.builder.recipe import Recipe

NEEDED = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "pydantic", "yaml")


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option(
    "--source",
    metavar="SOURCE",
    help="Instead of a recipe: a checkpoint folder, a GGUF file, or a hub's owner/name. In int8, "
    "with the model's own context up to 8192, unless --set says otherwise.",
)
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
@click.option(
    "--debug-precision",
    is_flag=True,
    help="Where an engine of target tensorrt fails conformance: compare its layers with ONNX "
    "Runtime's (needs the GPU, and the extras [debug] and [cpu]).",
)
@click.option(
    "--tune",
    "tuned",
    is_flag=True,
    help="Target cpu: time the plans on this machine and prefer the fastest; the manifest keeps "
    "the times.",
)
def command(
    recipe: Path | None,
    source: str | None,
    overrides: tuple[str, ...],
    output: Path,
    progress: bool | None,
    debug_precision: bool,
    tuned: bool,
) -> None:
    """Build the artifact that RECIPE describes, or one of --source, and print its path.

    The artifact is checked against the Hugging Face model before it is published; when a stage
    fails, an artifact of an earlier build stays as it was.
    """
    if (recipe is None) == (source is None):
        raise click.UsageError("give a RECIPE or --source, one of the two")
    if source is not None and not source.strip():
        raise click.UsageError("--source is empty: give a folder, a GGUF file or owner/name")
    require("build", *NEEDED)
    from enginewright.builder.recipe_yaml import parse_override

    for override in overrides:
        try:
            parse_override(override)
        except RecipeError as error:
            raise click.UsageError(str(error)) from error
    read = _recipe(recipe, source, overrides)
    if read.target == "cpu":
        require("cpu", "onnxruntime")
    from enginewright.builder.pipeline import build

    shown = sys.stderr.isatty() if progress is None else progress
    tell = _stage_lines() if shown else _silent
    built = build(read, output, progress=tell, debug_precision=debug_precision, tuned=tuned)
    click.echo(built)


def _recipe(path: Path | None, source: str | None, overrides: tuple[str, ...]) -> Recipe:
    if path is not None:
        from enginewright.builder.recipe import load_recipe

        return load_recipe(path, overrides)
    from enginewright.builder.source_recipe import source_recipe

    assert source is not None
    return source_recipe(source, overrides)


def _stage_lines() -> Callable[[str], None]:
    started = time.monotonic()

    def tell(stage: str) -> None:
        click.echo(f"[{time.monotonic() - started:6.1f} s] {stage}", err=True)

    return tell


def _silent(stage: str) -> None:
    """In a pipe the artifact's path is all that is said."""
