"""``enginewright build``: a recipe becomes an artifact; several become a table of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginewright.cli.build_options import (
    SIZE,
    check_overrides,
    output_option,
    overrides_option,
    source_option,
    the_recipe,
)
from enginewright.cli.extras import require

if TYPE_CHECKING:
    from enginewright.builder.matrix import Cell
    from enginewright.builder.recipe import Recipe
    from enginewright.builder.tuning import TuneFor

NEEDED = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "pydantic", "yaml", "filelock")


@click.command()
@click.argument("recipes", type=click.Path(dir_okay=False, path_type=Path), nargs=-1)
@source_option
@overrides_option
@output_option
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
    help="Target cpu: time plans and kernels on this machine and prefer the fastest; the manifest "
    "keeps the times.",
)
@click.option(
    "--tune-for",
    type=click.Choice(["all", "decode", "batch", "prefill"]),
    help="--tune, and which work decides: by default all of them (the geometric mean).",
)
@click.option(
    "--locked",
    type=click.Path(exists=True, path_type=Path),
    metavar="LOCK",
    help="Refuse, by name, whatever differs from this lock.json, or from that of an artifact; for "
    "several recipes a folder with NAME.lock.json, or with artifacts.",
)
@click.option("--explain-cache", is_flag=True, help="Say on stderr why each stage ran, or did not.")
@click.option(
    "--cache-limit",
    type=SIZE,
    default="20GB",
    show_default=True,
    envvar="ENGINEWRIGHT_CACHE_LIMIT",
    help="What the stage cache may hold afterwards.",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Cells at once."
)
@click.option(
    "--ray", "on_ray", is_flag=True, help="Build cells as tasks of Ray (RAY_ADDRESS, or here)."
)
@click.option(
    "--junit",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table of several recipes as JUnit XML.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    recipes: tuple[Path, ...],
    source: str | None,
    overrides: tuple[str, ...],
    output: Path,
    progress: bool | None,
    debug_precision: bool,
    tuned: bool,
    tune_for: TuneFor | None,
    locked: Path | None,
    explain_cache: bool,
    cache_limit: int,
    jobs: int,
    on_ray: bool,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Build the artifact that RECIPE describes, or one of --source, and print its path.

    The artifact is checked against the Hugging Face model before it is published; when a stage
    fails, an artifact of an earlier build stays as it was.

    Several RECIPES, or one with a matrix, are built as a table of cells, each in a process of its
    own; exit code 1 when one of them failed.
    """
    if bool(recipes) == (source is not None):
        raise click.UsageError("give a RECIPE or --source, one of the two")
    require("build", *NEEDED)
    check_overrides(overrides)
    tune_for = tune_for or ("all" if tuned else None)
    shown = sys.stderr.isatty() if progress is None else progress
    tell = _stage_lines() if shown else _silent
    if on_ray and jobs > 1:
        raise click.UsageError("--jobs is for cells of this machine; Ray's are as many as its CPUs")
    from enginewright.builder.matrix import is_matrix

    several = junit is not None or as_json or on_ray or len(recipes) > 1
    if several or (recipes and is_matrix(recipes[0], overrides)):
        if tune_for or debug_precision or explain_cache:
            raise click.UsageError(
                "--tune, --debug-precision and --explain-cache are for one recipe, and not with "
                "--json, --junit or --ray"
            )
        from enginewright.builder.cells import Order
        from enginewright.cli.build_table import build_table

        passed = build_table(
            _cells(recipes, source, overrides),
            Order(output, cache_limit, locked),
            jobs=jobs,
            on_ray=on_ray,
            junit=junit,
            as_json=as_json,
            tell=tell,
        )
        ctx.exit(0 if passed else 1)
    from enginewright.builder.pipeline import build

    if jobs > 1:
        _on_stderr(f"--jobs {jobs}: there is one cell to build")
    recipe = the_recipe(recipes[0] if recipes else None, source, overrides)
    _require_runtime(recipe)
    built = build(
        recipe,
        output,
        progress=tell,
        debug_precision=debug_precision,
        tune_for=tune_for,
        locked=locked,
        explain=_on_stderr if explain_cache else None,
        cache_limit=cache_limit,
    )
    click.echo(built)


def _cells(recipes: tuple[Path, ...], source: str | None, overrides: tuple[str, ...]) -> list[Cell]:
    from enginewright.builder.matrix import cell_of, load_cells

    if recipes:
        return load_cells(recipes, overrides)
    return [cell_of(the_recipe(None, source, overrides))]


def _require_runtime(recipe: Recipe) -> None:
    targets = [variant.target for variant in recipe.variants or ()] or [recipe.target]
    if "cpu" in targets:
        require("cpu", "onnxruntime")


def _stage_lines() -> Callable[[str], None]:
    started = time.monotonic()

    def tell(stage: str) -> None:
        click.echo(f"[{time.monotonic() - started:6.1f} s] {stage}", err=True)

    return tell


def _on_stderr(line: str) -> None:
    click.echo(line, err=True)


def _silent(stage: str) -> None:
    """In a pipe the artifact's path is all that is said."""
