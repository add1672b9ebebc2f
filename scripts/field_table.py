"""Writes docs/fields.md: every field and argument of the API, beside vLLM's and Hugging Face's.

    python scripts/field_table.py

Our defaults are read from the code; what else is said lies in tests/runtime/fields, next to the
tests that hold it. It writes nothing, and says why, where the two do not fit together.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from enginewright.runtime import LLM, BeamSearchParams, SamplingParams
from enginewright.runtime.engine_arguments import NEUTRAL

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "fields.md"
TESTS = ROOT / "tests" / "runtime"
KEYS = {"vllm", "hf", "test", "difference"}
REQUIRED = "required"

INTRODUCTION = """\
# Fields

Every parameter, with its default here and in vLLM 0.33, what transformers 5.23 calls it (a field of
`GenerationConfig` where nothing else is said), the test that holds it (in `tests/runtime`), and how
it differs from vLLM's. Illegal values of each are in `test_bad_sampling_params.py`,
`test_beam_search_params.py` and `test_engine_arguments.py`.

Written by `python scripts/field_table.py`; a test fails where it is out of date."""
LEFT_OUT = """\
## Arguments of vLLM's LLM that a built engine has no use for

Each is accepted at the values that ask for nothing; any other is an error that says why."""


@dataclass(frozen=True)
class Table:
    """One section: our defaults by name, and what the file says of each."""

    title: str
    file: str
    defaults: Mapping[str, str]
    tests: Path = TESTS

    @property
    def said(self) -> dict[str, dict[str, Any]]:
        """Rows by name, in the order of our fields."""
        rows = yaml.safe_load((self.tests / "fields" / self.file).read_text("utf-8"))
        return {name: rows[name] for name in (*self.defaults, *rows) if name in rows}

    def problems(self) -> Iterator[str]:
        """What the file lacks or gets wrong."""
        rows = self.said
        yield from (f"{self.file}: no row for {name}" for name in self.defaults if name not in rows)
        for name, row in rows.items():
            where = f"{self.file}: {name}"
            if name not in self.defaults:
                yield f"{where}: there is no such field"
            elif wrong := row.keys() - KEYS:
                yield f"{where}: {', '.join(sorted(wrong))} is none of {', '.join(sorted(KEYS))}"
            elif not is_test(self.tests, row.get("test", "")):
                yield f"{where}: {row.get('test')} is no test in {self.tests}"
            elif str(row.get("vllm")) != self.defaults[name] and not row.get("difference"):
                yield f"{where}: another default than vLLM's, and no difference is told"

    def lines(self) -> Iterator[str]:
        """The section as Markdown."""
        yield f"## {self.title}\n"
        yield from table_lines(
            ("field", "default", "vLLM's", "Hugging Face", "test", "difference"),
            [
                (
                    f"`{name}`",
                    f"`{self.defaults[name]}`",
                    f"`{row['vllm']}`" if "vllm" in row else "—",
                    counterpart(row.get("hf", "—")),
                    str(row["test"]),
                    str(row.get("difference", "")),
                )
                for name, row in self.said.items()
            ],
        )


def counterpart(text: str) -> str:
    """A bare name as code, with what stands behind it as it is."""
    name, space, rest = text.partition(" ")
    return f"`{name}`{space}{rest}" if name.isidentifier() else text


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    )


def is_test(folder: Path, node: str) -> bool:
    """Whether ``test_file.py::test_name`` is there."""
    file, _, name = node.partition("::")
    return name in tests_of(folder / file)


@cache
def tests_of(path: Path) -> frozenset[str]:
    if path.suffix != ".py" or not path.is_file():
        return frozenset()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(path.read_text("utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, kinds))


def fields_of(cls: type) -> dict[str, str]:
    """The defaults of a dataclass."""
    return {field.name: spelt(field.default) for field in dataclasses.fields(cls)}


def arguments_of(function: Callable[..., Any]) -> dict[str, str]:
    """The defaults of a method's own arguments."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = (each for each in parameters if each.kind is not each.VAR_KEYWORD)
    return {each.name: spelt(each.default) for each in named}


def spelt(default: Any) -> str:
    if default in (dataclasses.MISSING, inspect.Parameter.empty):
        return REQUIRED
    return default.name if isinstance(default, Enum) else repr(default)


def tables() -> list[Table]:
    return [
        Table("SamplingParams", "sampling_params.yaml", fields_of(SamplingParams)),
        Table("BeamSearchParams", "beam_search_params.yaml", fields_of(BeamSearchParams)),
        Table("LLM", "llm.yaml", arguments_of(LLM.__init__)),
    ]


def problems() -> list[str]:
    """What keeps the page from being written."""
    return [problem for table in tables() for problem in table.problems()]


def page() -> str:
    """The whole page."""
    sections = ["\n".join(table.lines()) for table in tables()]
    accepted = [
        (f"`{name}`", "any" if values is None else ", ".join(f"`{v!r}`" for v in values), reason)
        for name, (values, reason) in NEUTRAL.items()
    ]
    left_out = "\n".join(table_lines(("argument", "accepted", "why"), accepted))
    return "\n\n".join([INTRODUCTION, *sections, LEFT_OUT, left_out]) + "\n"


def main() -> None:
    found = problems()
    if found:
        sys.exit("\n".join(f"error: {problem}" for problem in found))
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
