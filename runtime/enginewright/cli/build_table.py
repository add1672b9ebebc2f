"""Several recipes built as one table of cells, for people, as JSON, and as JUnit XML."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginewright.cli.text import size, table

if TYPE_CHECKING:
    from enginewright.builder.cells import Order, Outcome
    from enginewright.builder.matrix import Cell


def build_table(
    cells: Sequence[Cell],
    order: Order,
    *,
    jobs: int,
    on_ray: bool,
    junit: Path | None,
    as_json: bool,
    tell: Callable[[str], None],
) -> bool:
    """Build every cell, print the table, and say whether none failed."""
    from enginewright.builder.cells import outcome_data, run_cells, run_on_ray
    from enginewright.builder.junit import write_junit

    if junit is not None:
        _check_place(junit)
    if order.locks is not None:
        _check_locks(cells, order.locks)
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


def _check_place(junit: Path) -> None:
    try:
        junit.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(
            f"--junit {junit}: {junit.parent} cannot be made ({error.strerror}); choose another"
        ) from error
    if not os.access(junit if junit.exists() else junit.parent, os.W_OK):
        raise click.UsageError(f"--junit {junit}: cannot be written; choose another file")


def _check_locks(cells: Sequence[Cell], locks: Path) -> None:
    from enginewright.builder.lock import lock_in, read_lock

    for cell in cells:
        if cell.recipe is not None:
            read_lock(lock_in(locks, cell.name))


def _page(outcomes: Sequence[Outcome]) -> str:
    header = ("cell", "target", "precision", "result", "seconds", "size", "from the cache")
    rows = [
        (
            each.name,
            each.target,
            each.precision,
            each.status if each.device is None else f"{each.status}, device {each.device}",
            f"{each.seconds:.1f}",
            "" if each.size is None else size(each.size),
            ", ".join(each.cached),
        )
        for each in outcomes
    ]
    told = [f"\n{each.name} {each.status}: {each.message}" for each in outcomes if each.message]
    return "\n".join([table(header, rows), *told])
