"""``enginewright lint-recipe``: are these recipes right? Reads no model, needs no torch."""

from __future__ import annotations

from pathlib import Path

import click

from enginewright.cli.extras import require
from enginewright.runtime.errors import RecipeError


@click.command()
@click.argument("recipes", type=click.Path(dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.pass_context
def command(ctx: click.Context, recipes: tuple[Path, ...]) -> None:
    """Check every field of RECIPES, and that no two make artifacts of one name.

    For a hook before each commit: .pre-commit-hooks.yaml has one.
    """
    require("build", "pydantic", "yaml")
    from enginewright.builder.matrix import load_cells

    good = [path for path in recipes if _is_right((path,))]
    if not _is_right(tuple(good)) or len(good) < len(recipes):
        ctx.exit(1)
    click.echo(f"{len(load_cells(good))} artifacts in {len(good)} recipes: nothing is wrong")


def _is_right(paths: tuple[Path, ...]) -> bool:
    from enginewright.builder.matrix import load_cells

    try:
        load_cells(paths)
    except RecipeError as error:
        click.echo(f"error: {error}", err=True)
        return False
    return True
