"""What a check on the device gives: rows of a table, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["ok", "MISSED", "FAILED", "info", "skipped"]


@dataclass(frozen=True)
class Row:
    """One line. ``goal``: what it is held to, empty if it is for information; ``figures``: the
    numbers in ``value``, by name with the unit."""

    section: str
    what: str
    value: str
    goal: str = ""
    verdict: Verdict = "info"
    figures: Mapping[str, float] = field(default_factory=dict)


def skipped(section: str, what: str, why: str) -> Row:
    """What was not run, and the reason."""
    return Row(section, what, why, verdict="skipped")


def table(rows: Sequence[Row]) -> str:
    """The rows as a table of Markdown."""
    lines = ["| section | what | value | goal | result |", "|---|---|---|---|---|"]
    lines += [f"| {r.section} | {r.what} | {r.value} | {r.goal} | {r.verdict} |" for r in rows]
    return "\n".join(lines)


def write(path: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """The JSON of a run."""
    data = {"machine": facts, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
