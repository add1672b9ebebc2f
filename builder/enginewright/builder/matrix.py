"""Many recipes as one table of cells: several files, and recipes with a ``matrix``.

    name: smollm2
    source: {path: ../checkpoints/smollm2}
    limits: {max_context: 8192}
    matrix: {target: [cpu, cuda], precision: [fp16, int8, int4]}

A cell is called <name>-<target>-<precision>. What a target does not build is a cell that is
skipped, and says so; a field that only some targets know goes to the cells of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from enginewright.builder.recipe import ONLY, PRECISIONS, Recipe, make_recipe, read_recipe
from enginewright.runtime.errors import RecipeError

_AXES = ("target", "precision")


@dataclass(frozen=True)
class Cell:
    """One artifact of a table; without a recipe it is skipped, for the reason given."""

    name: str
    target: str
    precision: str
    recipe: Recipe | None = None
    skipped: str | None = None


def load_cells(paths: Sequence[Path], overrides: Sequence[str] = ()) -> list[Cell]:
    """The cells of all recipes in the files; raises RecipeError where one is wrong.

    Two cells of one name would be one folder, and are refused.
    """
    cells = [cell for path in paths for cell in _of_file(path, overrides)]
    twice = [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]
    if twice:
        raise RecipeError(
            f"{', '.join(twice)}: two recipes of one name are one folder of --output; rename one"
        )
    return cells


def cell_of(recipe: Recipe) -> Cell:
    """A recipe as the one cell that it is."""
    return Cell(recipe.name, recipe.target, recipe.precision, recipe)


def is_matrix(path: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether the recipe in the file has several cells."""
    return "matrix" in read_recipe(path, overrides)[0]


def _of_file(path: Path, overrides: Sequence[str]) -> Iterator[Cell]:
    data, where = read_recipe(path, overrides)
    if "matrix" not in data:
        yield cell_of(make_recipe(data, where))
        return
    axes = _axes(data.pop("matrix"), where)
    beside = [name for name in (*_AXES, "variants") if name in data]
    if beside:
        raise RecipeError(f"{where}: matrix: {', '.join(beside)} cannot stand beside it")
    for target, precision in product(axes["target"], axes["precision"]):
        name = f"{data.get('name', 'cell')}-{target}-{precision}"
        if precision not in PRECISIONS[target]:
            reason = f"target {target} builds {', '.join(PRECISIONS[target])}"
            yield Cell(name, target, precision, skipped=reason)
            continue
        known = {key: data[key] for key in data if target in ONLY.get(key, (target,))}
        cell = {**known, "name": name, "target": target, "precision": precision}
        yield Cell(name, target, precision, make_recipe(cell, f"{where}, cell {name}"))


def _axes(matrix: Any, where: str) -> Mapping[str, Sequence[str]]:
    if not isinstance(matrix, Mapping) or set(matrix) != set(_AXES):
        raise RecipeError(
            f"{where}: matrix: {matrix!r:.80} is not legal: a mapping with two lists is wanted, as "
            f"in {{target: [cpu], precision: [int8, int4]}}"
        )
    legal = {
        "target": tuple(PRECISIONS),
        "precision": tuple(dict.fromkeys(each for some in PRECISIONS.values() for each in some)),
    }
    for axis in _AXES:
        values = matrix[axis]
        wrong = [each for each in values if each not in legal[axis]] if _is_list(values) else values
        if not _is_list(values) or not values or wrong:
            raise RecipeError(
                f"{where}: matrix.{axis}: {wrong!r:.80} is not legal; a list of "
                f"{', '.join(legal[axis])} is wanted"
            )
    return dict(matrix)


def _is_list(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, str) for each in values)
