"""docs/offline-inference.md names every argument that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from enginewright.runtime import LLM, AsyncLLM
from enginewright.runtime.engine_arguments import NEUTRAL

PAGE = Path(__file__).resolve().parents[2] / "docs" / "offline-inference.md"


@pytest.mark.parametrize("name", [*NEUTRAL, "tokenizer", "task"])
def test_every_argument_that_asks_for_nothing_is_listed(name: str) -> None:
    assert re.search(rf"`{name}\b", PAGE.read_text("utf-8"))


def test_the_table_is_that_of_the_constructor() -> None:
    rows = PAGE.read_text("utf-8").split("| argument |")[1].split("\n\n")[0].splitlines()[2:]
    named = set()
    for row in rows:
        _, arguments, _, alias, _ = (cell.strip() for cell in row.split("|", 4))
        named |= set(arguments.split(", ")) | set(re.findall(r"(\w+), accepted", alias))
    assert named == set(LLM.__init__.__kwdefaults__ or ())


def test_every_method_is_named() -> None:
    page = PAGE.read_text("utf-8")
    for kind in (LLM, AsyncLLM):
        methods = {name for name in dir(kind) if not name.startswith("_")}
        methods -= {"manifest", "plan", "engine_info", "max_batch", "max_context", "is_running"}
        missing = {
            name for name in methods if f"{name}(" not in page and f"engine.{name}" not in page
        }
        assert missing <= {"hand_over", "over", "requests"}
