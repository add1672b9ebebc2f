"""Tables, sizes and figures for people."""

from __future__ import annotations

import sys

import pytest

from enginewright.cli.text import number, say, size, table


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    lines = table(("file", "size"), [("a", "9"), ("long", "1234")]).splitlines()

    assert lines == ["file  size", "----  ----", "a        9", "long  1234"]


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("a", "bc"), []) == "a  bc\n-  --"


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (93_100_000, "93.1 MB"), (2.5e15, "2500.0 TB")],
)
def test_sizes(count: float, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(314.15, "314"), (25.34, "25.3"), (0.00421, "0.00421"), (0, "0"), (46611, "46611")],
)
def test_figures(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_models_text_cannot_control_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    say("a\x1b]0;title\x07\tb\n\x9b2J")

    assert capsys.readouterr().out == "a�]0;title�\tb\n�2J"


def test_a_models_text_is_not_changed_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[0m")

    assert capsys.readouterr().out == "a\x1b[0m"
