"""``enginewright plan``: what a build will take, and what its engine will need, before it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginewright.cli.build import NEEDED
from enginewright.cli.build_options import (
    SIZE,
    check_overrides,
    output_option,
    overrides_option,
    source_option,
    the_recipe,
)
from enginewright.cli.extras import require
from enginewright.cli.text import size, table
from enginewright.runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from enginewright.builder.plan import Estimate
    from enginewright.builder.recipe import Recipe


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path), required=False)
@source_option
@overrides_option
@output_option
@click.option(
    "--memory",
    type=SIZE,
    help="What is to serve the engine has: device memory, or the host's for target cpu. By "
    "default what is free here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    recipe: Path | None,
    source: str | None,
    overrides: tuple[str, ...],
    output: Path,
    memory: int | None,
    as_json: bool,
) -> None:
    """Say what the build of RECIPE takes: memory, disk, time; and what its engine needs.

    It is calculated from the model's config and the headers of its files; nothing is built, and no
    weight is read. A matrix or a set of variants is planned cell by cell. Exit code 1 when one
    does not fit.
    """
    if (recipe is None) == (source is None):
        raise click.UsageError("give a RECIPE or --source, one of the two")
    require("build", *NEEDED)
    check_overrides(overrides)
    from enginewright.builder.plan import plan
    from enginewright.builder.subject import open_subject

    told, fits = [], True
    for each in _recipes(recipe, source, overrides):
        estimate = plan(open_subject(each))
        given = memory if memory is not None else _free_memory(each.target)
        problems = list(estimate.problems(output, given))
        fits = fits and not problems
        if as_json:
            told.append(estimate.as_data() | {"memory": given, "problems": problems})
        else:
            click.echo("\n".join(_page(estimate, given, problems)))
    if as_json:
        click.echo(json.dumps({"fits": fits, "plans": told}, indent=2, ensure_ascii=False))
    ctx.exit(0 if fits else 1)


def _recipes(path: Path | None, source: str | None, overrides: tuple[str, ...]) -> Iterator[Recipe]:
    from enginewright.builder.matrix import is_matrix, load_cells

    if path is not None and is_matrix(path, overrides):
        yield from (cell.recipe for cell in load_cells([path], overrides) if cell.recipe)
        return
    recipe = the_recipe(path, source, overrides)
    yield from recipe.each_variant().values() if recipe.variants else (recipe,)


def _free_memory(target: str) -> int | None:
    """Of the GPU that is here, or of the host; None where nothing is known."""
    from enginewright.runtime.doctor.driver import read_driver
    from enginewright.runtime.doctor.host import read_host

    if target == "cpu":
        return read_host().available_bytes
    try:
        devices = read_driver().devices
    except EnginewrightError:
        return None
    return devices[0].total_memory if devices else None


def _page(estimate: Estimate, memory: int | None, problems: list[str]) -> Iterator[str]:
    yield f"plan of {estimate.name}"
    yield from (f"  {name:<19} {value}" for name, value in _figures(estimate))
    yield ""
    yield from _fitting(estimate, memory)
    yield ""
    if problems:
        yield from (f"does not fit: {problem}" for problem in problems)
    else:
        yield "fits"


def _figures(estimate: Estimate) -> Iterator[tuple[str, str]]:
    from enginewright.builder.history import STAGES

    yield "parameters", f"{estimate.subject_size.parameters / 1e6:.1f} million"
    yield "engine", size(estimate.engine_bytes)
    yield "artifact", size(estimate.artifact_bytes)
    yield "cache per token", f"{estimate.kv_bytes_per_token} bytes"
    yield "build: memory", f"{size(estimate.host_bytes)} of the host at the peak"
    yield "build: disk", size(estimate.disk_bytes)
    times = estimate.times
    if not times:
        yield "build: time", "unknown: no build was recorded on this machine yet"
        return
    for stage in STAGES:
        if stage in estimate.held:
            yield f"build: {stage}", "in the cache"
        elif stage in times:
            each = times[stage]
            error = "unknown" if each.error is None else f"{each.error:.1f} s"
            builds = f"{each.builds} build{'s' if each.builds > 1 else ''}"
            yield f"build: {stage}", f"{each.seconds:.1f} s (error {error}, from {builds})"
        else:
            yield f"build: {stage}", "unknown: not recorded for this target and precision yet"


def _fitting(estimate: Estimate, memory: int | None) -> Iterator[str]:
    from enginewright.builder.plan import batches, contexts

    columns = batches(estimate.needs.rows)
    rows = []
    for context in contexts(estimate.max_context):
        total = [estimate.at(batch, context) for batch in columns]
        cells = [size(each) if memory is None or each <= memory else "-" for each in total]
        most = "" if memory is None else str(estimate.rows_within(memory, context))
        rows.append((str(context), *cells, most))
    given = "no memory given" if memory is None else f"'-' exceeds the {size(memory)} given"
    yield f"memory to serve, by tokens of a row and rows ({given}):"
    yield table(("context", *(f"batch {batch}" for batch in columns), "most rows"), rows)
