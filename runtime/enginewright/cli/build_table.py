"""Several recipes built as one table of cells, for people, as JSON, and as JUnit XML."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginewright.cli.text import size, table

if TYPE_CHECKING:
    from enginewright.builder.cells import Outcome


def build_table(
    recipes: Sequence[Path],
    overrides: Sequence[str],
    output: Path,
    *,
    cache_limit: int,
    jobs: int,
    on_ray: bool,
    junit: Path | None,
    as_json: bool,
    tell: Callable[[str], None],
) -> bool:
    """Build every cell, print the table, and say whether none failed."""
    from enginewright.builder.cells import Order, outcome_data, run_cells, run_on_ray
    from enginewright.builder.junit import write_junit
    from enginewright.builder.matrix import load_cells

    cells = load_cells(recipes, overrides)
    order = Order(output, cache_limit)
    if on_ray:
        outcomes = run_on_ray(cells, order, tell=tell)
    else:
        outcomes = run_cells(cells, order, jobs=jobs, tell=tell)
    if junit is not None:
        write_junit(outcomes, junit)
    passed = all(outcome.status != "failed" for outcome in outcomes)
    if as_json:
        data = {"passed": passed, "cells": [outcome_data(outcome) for outcome in outcomes]}
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo(_page(outcomes))
    return passed


def _page(outcomes: Sequence[Outcome]) -> str:
    header = ("cell", "target", "precision", "result", "seconds", "size", "from the cache")
    rows = [
        (
            each.name,
            each.target,
            each.precision,
            each.status,
            f"{each.seconds:.1f}",
            "" if each.size is None else size(each.size),
            ", ".join(each.cached),
        )
        for each in outcomes
    ]
    told = [f"\n{each.name} {each.status}: {each.message}" for each in outcomes if each.message]
    return "\n".join([table(header, rows), *told])
