"""What the verbs that read a recipe share: the recipe, or --source, with --set; sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginewright.runtime.errors import RecipeError

if TYPE_CHECKING:
    from enginewright.builder.recipe import Recipe

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]i?)?B?")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 2 ** (10 * at) for at, unit in enumerate(("k", "M", "G", "T"), start=1)}


class _Size(click.ParamType[int]):
    """Bytes, with a unit: 24GiB, 500MB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _AMOUNT.fullmatch(value.strip())
        if found is None:
            self.fail(f"{value!r} is no size: a number and a unit are wanted, as in 24GiB", param)
        return int(float(found[1]) * _UNITS[found[2] or ""])


SIZE = _Size()


def _named(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.UsageError("--source is empty: give a folder, a GGUF file or owner/name")
    return value


source_option = click.option(
    "--source",
    callback=_named,
    metavar="SOURCE",
    help="Instead of a recipe: a checkpoint folder, a GGUF file, or a hub's owner/name. In int8, "
    "with the model's own context up to 8192, unless --set says otherwise.",
)
overrides_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a field of the recipe, such as precision=int8 or limits.max_batch=4.",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("artifacts"),
    show_default=True,
    help="Folder in which the artifact's own folder is made.",
)


def check_overrides(overrides: tuple[str, ...]) -> None:
    """A --set of a wrong form is a wrong usage."""
    from enginewright.builder.recipe_yaml import parse_override

    for override in overrides:
        try:
            parse_override(override)
        except RecipeError as error:
            raise click.UsageError(str(error)) from error


def the_recipe(path: Path | None, source: str | None, overrides: tuple[str, ...]) -> Recipe:
    """The recipe in the file, or the one for a source alone."""
    if path is not None:
        from enginewright.builder.recipe import load_recipe

        return load_recipe(path, overrides)
    from enginewright.builder.source_recipe import source_recipe

    assert source is not None
    return source_recipe(source, overrides)
