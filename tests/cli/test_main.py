"""The verbs' table, help, versions, exit codes, and that nothing is imported before its use."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from enginewright.cli.bench.group import VERBS as BENCH_VERBS
from enginewright.cli.main import VERBS, main

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "numpy", "tokenizers", "pydantic")


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has after running the code."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_command_imports_no_verb_and_nothing_heavy() -> None:
    found = modules_after("import enginewright.cli.main")

    verbs = {verb.module for verb in VERBS.values()}
    assert not found & verbs
    assert not found.intersection(HEAVY)


def test_the_help_of_the_group_imports_no_verb() -> None:
    found = modules_after(
        "from enginewright.cli.main import main\nmain(['--help'], standalone_mode=False)"
    )

    assert not found & {verb.module for verb in VERBS.values()}


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_imports_nothing_of_the_builder(verb: str) -> None:
    found = modules_after(
        f"from enginewright.cli.main import main\nmain([{verb!r}, '--help'], standalone_mode=False)"
    )

    assert VERBS[verb].module in found
    assert not found & {"torch", "transformers", "onnx", "onnxruntime", "enginewright.builder"}


@pytest.mark.parametrize(
    "path", [[verb] for verb in VERBS] + [["bench", verb] for verb in BENCH_VERBS]
)
def test_every_verb_has_help(path: list[str]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"])

    assert result.exit_code == 0, result.output
    assert f"Usage: main {' '.join(path)}" in result.output


def test_the_groups_help_lists_every_verb() -> None:
    result = CliRunner().invoke(main, ["--help"])

    assert result.exit_code == 0
    for name, verb in VERBS.items():
        assert name in result.output
        assert verb.help in result.output


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])

    assert result.exit_code == 0
    assert importlib.metadata.version("enginewright") in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspekt"],
        ["inspect"],
        ["run"],
        ["run", "somewhere", "prompt", "more"],
        ["run", "somewhere", "prompt", "--threads", "0"],
        ["run", "somewhere", "prompt", "--system", "be kind"],
        ["run", "somewhere", "\udcff"],
        ["run", "", "hi"],
        ["inspect", " "],
        ["lint", "somewhere", "--prompt", ""],
        ["build", "--source", ""],
        ["bench", "somewhere", "--runs", "none"],
        ["bench", "peers", "somewhere", "--peer", "unheard-of"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)

    assert result.exit_code == 2, result.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("precision", "--set precision: the form is path=value"),
        ("=int8", "--set =int8: the form is path=value"),
        ("limits..max_batch=1", "the form is path=value"),
        ("limits={", "--set limits={: the value is not YAML: expected the node content"),
    ],
)
def test_a_change_of_another_form_is_wrong_usage(tmp_path: Path, change: str, said: str) -> None:
    pytest.importorskip("torch")
    result = CliRunner().invoke(main, ["build", str(tmp_path / "recipe.yaml"), "--set", change])

    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_a_change_that_the_recipe_does_not_allow_is_a_failure(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    arguments = ["build", str(tmp_path / "recipe.yaml"), "--set", "precision=int9"]
    result = CliRunner().invoke(main, arguments)

    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_a_misspelt_verb_is_answered_by_the_nearest() -> None:
    assert "Did you mean 'inspect'?" in CliRunner().invoke(main, ["inspekt"]).output


@pytest.mark.parametrize(
    "arguments",
    [["inspect"], ["verify"], ["chat"], ["bench"], ["bench", "startup"], ["run", "--"]],
)
def test_an_artifact_that_is_not_there_is_an_error(tmp_path: Path, arguments: list[str]) -> None:
    missing = tmp_path / "nothing"
    result = CliRunner().invoke(main, [*arguments, str(missing)], input="hello")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {missing}: no such folder")
    assert not result.stdout


def test_a_missing_extra_is_answered_by_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = CliRunner().invoke(main, ["build", str(tmp_path / "recipe.yaml")])

    assert result.exit_code == 1
    assert result.stderr == "error: needs torch: pip install 'enginewright[build]'\n"


def test_a_recipe_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    result = CliRunner().invoke(main, ["build", str(tmp_path / "recipe.yaml")])

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'recipe.yaml'}: no recipe")


def test_the_module_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "enginewright.cli", "inspect", "/nowhere/at/all"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: /nowhere/at/all: no such folder")
