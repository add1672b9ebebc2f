"""docs/fields.md: it is what the code and the tests' own tables say, and they are complete."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
Script = dict[str, Any]


@pytest.fixture(scope="module")
def script() -> Script:
    return runpy.run_path(str(ROOT / "scripts" / "field_table.py"))


def test_every_field_is_told_with_a_test_that_exists(script: Script) -> None:
    assert script["problems"]() == []


def test_the_page_is_up_to_date(script: Script) -> None:
    written = (ROOT / "docs" / "fields.md").read_text("utf-8")
    assert written == script["page"](), "run: python scripts/field_table.py"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("old: {vllm: 1, test: test_a.py::test_it}", "there is no such field"),
        ("new: {vllm: 1, test: test_a.py::test_gone}", "test_a.py::test_gone is no test"),
        ("new: {vllm: 1}", "None is no test"),
        ("new: {vllm: 2, test: test_a.py::test_it}", "no difference is told"),
        ("new: {test: test_a.py::test_it}", "no difference is told"),
        ("new: {vlm: 1, test: test_a.py::test_it}", "vlm is none of difference, hf, test, vllm"),
        ("{}", "no row for new"),
    ],
)
def test_what_does_not_fit_is_told(script: Script, tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "test_a.py").write_text("def test_it(): pass\n")
    assert said in "\n".join(table(script, tmp_path, row).problems())


def test_a_row_becomes_a_line(script: Script, tmp_path: Path) -> None:
    row = "new: {vllm: 1, hf: old (7), test: a.py::b}"
    line = list(table(script, tmp_path, row).lines())[-1]
    assert line == "| `new` | `1` | `1` | `old` (7) | a.py::b |  |"


def table(script: Script, tests: Path, row: str) -> Any:
    (tests / "fields").mkdir()
    (tests / "fields" / "rows.yaml").write_text(row)
    return script["Table"]("Title", "rows.yaml", {"new": "1"}, tests)
