"""Nothing that is shipped reads a pickle, or evaluates what it read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {"load", "unsafe_load", "full_load"}


def files() -> Iterator[Path]:
    for root in ("runtime", "builder", "plugins"):
        yield from sorted((ROOT / root).rglob("*.py"))


def findings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"from {node.module}"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield "allow_pickle"
        elif isinstance(node, ast.Call):
            yield from _calls(node)


def _calls(call: ast.Call) -> Iterator[str]:
    function = call.func
    if isinstance(function, ast.Name) and function.id in ("eval", "exec"):
        yield f"{function.id}()"
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return
    owner, named = function.value.id, {keyword.arg for keyword in call.keywords}
    if owner == "yaml" and function.attr in LOADERS and "Loader" not in named:
        yield f"yaml.{function.attr}"
    if owner == "torch" and function.attr == "load":
        yield "torch.load"


def test_nothing_shipped_reads_a_pickle() -> None:
    found = [f"{p}: {what}" for p in files() for what in findings(ast.parse(p.read_text("utf-8")))]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "numpy.load(f, allow_pickle=True)",
        "torch.load(f)",
        "yaml.load(f)",
        "yaml.unsafe_load(f)",
        "eval(text)",
    ],
)
def test_the_search_finds(code: str) -> None:
    assert list(findings(ast.parse(code)))


def test_there_is_something_to_search() -> None:
    assert len(list(files())) > 200
