"""A comparison of two artifacts for people: only what differs, and every measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from enginewright.cli.diff.changes import Change
from enginewright.cli.diff.conversations import Rendering
from enginewright.cli.diff.measures import Measure
from enginewright.cli.text import number, size, table

_LONGEST = 60
_LINES = 8


def change_lines(changed: Sequence[Change]) -> Iterator[str]:
    """A table of each section."""
    for section, group in groupby(changed, key=lambda change: change.section):
        rows = [(change.name, _value(change.a), _value(change.b)) for change in group]
        yield f"\n{table((section, 'A', 'B'), rows)}"


def template_lines(differing: Sequence[Rendering], count: int) -> Iterator[str]:
    """Which golden conversations come out differently, and where."""
    if not differing:
        yield f"\ntemplate: {count} golden conversations are rendered alike"
        return
    yield f"\ntemplate: {len(differing)} of {count} golden conversations are rendered otherwise"
    for each in differing:
        lines = each.lines()
        yield f"  {each.conversation}"
        yield from (f"    {line[:160]}" for line in lines[:_LINES])
        if len(lines) > _LINES:
            yield f"    and {len(lines) - _LINES} more lines"


def measure_lines(measures: Sequence[Measure]) -> Iterator[str]:
    """A table with a row for each measure; below it why some are missing, and what to know."""
    rows = []
    for each in measures:
        name = f"{each.name}, {each.plan}" if each.plan else each.name
        a, b = each.shown or (_number(each, each.a), _number(each, each.b))
        unit = "" if each.kind.unit in ("", "B") else f" ({each.kind.unit})"
        rows.append((f"{name}{unit}", a, b, _change(each)))
    yield f"\n{table(('measure', 'A', 'B', 'B is'), rows)}"
    reasons: dict[str, list[str]] = {}
    for each in measures:
        if each.reason:
            reasons.setdefault(each.reason, []).append(each.name)
    yield from (f"{', '.join(dict.fromkeys(names))}: {why}" for why, names in reasons.items())


def _number(measure: Measure, value: float | None) -> str:
    if value is None:
        return "-"
    if measure.kind.unit == "B":
        return size(value)
    return number(value) if measure.kind.unit not in ("", "nats") else f"{value:.6g}"


def _change(measure: Measure) -> str:
    if measure.worse is None:
        return "not compared"
    if measure.worse == 0:
        return "the same"
    word = "worse" if measure.worse > 0 else "better"
    amount = abs(measure.worse)
    return f"{word} by {amount:.2%}" if measure.kind.relative else f"{word} by {amount:.6g}"


def _value(value: Any) -> str:
    text = "-" if value is None else str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:16]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
