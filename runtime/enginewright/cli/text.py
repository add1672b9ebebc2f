"""Plain text for people: aligned tables, sizes, figures, and what a model wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest

import click

_NUMERIC = set("0123456789.,+-%x –")  # noqa: RUF001 - ranges are written with a dash
_UNITS = ("B", "kB", "MB", "GB", "TB")
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "�")
_HARMLESS = {code: text for code, text in _CONTROLS.items() if chr(code) not in "\n\t"}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns two spaces apart; a column that holds only numbers is aligned to the right."""
    body = [list(row) for row in rows]
    columns = list(zip_longest(*body, fillvalue=""))
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    numeric = [all(_is_number(cell) for cell in column) for column in columns] or [False] * len(
        widths
    )
    lines = [_line(row, widths, numeric) for row in [list(header), *body]]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def size(count: int | float) -> str:
    """Bytes for people, in powers of 1000: ``93.1 MB``."""
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def number(value: float) -> str:
    """A figure with as many digits as mean something: ``314``, ``25.3``, ``0.0042``."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def say(text: str) -> None:
    """Write a model's text at once. In a terminal, control characters are made harmless there."""
    shown = text.translate(_HARMLESS) if sys.stdout.isatty() else text
    click.echo(shown, nl=False, color=True)  # else click takes escape sequences out


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    placed = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "  ".join(placed).rstrip()


def _is_number(cell: str) -> bool:
    return not set(cell) - _NUMERIC
