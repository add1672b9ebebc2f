"""Several recipes as a table of cells: which there are, how they are built, what is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from enginewright.builder.cache import entries
from enginewright.builder.cells import Order, Outcome, outcome_data, run_cells
from enginewright.builder.junit import write_junit
from enginewright.builder.matrix import Cell, is_matrix, load_cells
from enginewright.cli.build_table import _page
from enginewright.cli.main import main
from enginewright.runtime.errors import RecipeError

LOOSE = {"min_top1_agreement": 0.2, "max_mean_kl": 3.0, "max_perplexity_increase": 2.0}
STRICT = {"max_mean_kl": 0.0}


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {})


@pytest.fixture(autouse=True)
def _no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are processes of their own: what they share with this one is the environment."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo none && exit\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


@pytest.fixture
def write(tmp_path: Path, checkpoint: Path) -> Callable[..., Path]:
    """``write(name, **fields)``: a recipe's file."""

    def write(name: str, **fields: Any) -> Path:
        data = {
            "name": name,
            "source": {"path": str(checkpoint)},
            "limits": {"max_context": 64, "max_batch": 4},
            "conformance": {"int8": LOOSE, "int4": LOOSE},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(data | fields))  # which is YAML as well
        return path

    return write


def test_a_matrix_has_a_cell_for_each_pair(write: Callable[..., Path]):
    path = write("m", matrix={"target": ["cpu", "cuda"], "precision": ["int8", "fp16"]})
    cells = load_cells([path])
    assert [(cell.name, cell.skipped) for cell in cells] == [
        ("m-cpu-int8", None),
        ("m-cpu-fp16", "target cpu builds fp32, int8, int4"),
        ("m-cuda-int8", "target cuda builds fp16, bf16, int4"),
        ("m-cuda-fp16", None),
    ]
    assert is_matrix(path)
    assert cells[0].recipe is not None
    assert (cells[0].recipe.target, cells[0].recipe.precision) == ("cpu", "int8")


def test_a_field_goes_to_the_cells_whose_target_knows_it(write: Callable[..., Path]):
    matrix = {"target": ["cpu", "tensorrt_rtx"], "precision": ["int8"]}
    cpu, rtx = load_cells([write("m", matrix=matrix, attention="native")])
    assert cpu.recipe is not None
    assert rtx.recipe is not None
    assert (cpu.recipe.attention, rtx.recipe.attention) == (None, "native")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"matrix": {"target": ["cpu"]}}, "matrix: .* is not legal: a mapping with two lists"),
        ({"matrix": {"target": ["gpu"], "precision": ["int8"]}}, r"matrix\.target: \['gpu'\]"),
        ({"matrix": {"target": ["cpu"], "precision": "int8"}}, r"matrix\.precision: 'int8'"),
        ({"matrix": {"target": [], "precision": ["int8"]}}, r"matrix\.target: \[\] is not legal"),
        (
            {"matrix": {"target": ["cpu"], "precision": ["int8"]}, "target": "cpu"},
            "matrix: target cannot stand beside it",
        ),
        (
            {"matrix": {"target": ["cpu"], "precision": ["int8"]}, "limitz": {}},
            "limitz",
        ),
    ],
)
def test_a_wrong_matrix_is_refused(write: Callable[..., Path], fields: Any, said: str):
    with pytest.raises(RecipeError, match=said):
        load_cells([write("m", **fields)])


def test_two_cells_of_one_name_are_refused(write: Callable[..., Path]):
    one = write("a", target="cpu", precision="int8")
    with pytest.raises(RecipeError, match="a: two recipes of one name"):
        load_cells([one, one])


def test_cells_share_stages_and_a_failed_one_stops_no_other(
    write: Callable[..., Path], tmp_path: Path
):
    conformance = {"int8": LOOSE, "int4": STRICT, "fp32": {}}
    matrix = {"target": ["cpu"], "precision": ["int8", "int4", "fp32", "fp16"]}
    path = write("m", matrix=matrix, conformance=conformance)
    junit, output = tmp_path / "ci" / "junit.xml", tmp_path / "out"
    arguments = ["build", str(path), "-o", str(output), "--jobs", "2", "--json"]
    ran = CliRunner().invoke(main, [*arguments, "--junit", str(junit)])
    assert ran.exit_code == 1, ran.stderr
    told = json.loads(ran.stdout)
    cells = {cell["name"]: cell for cell in told["cells"]}
    assert not told["passed"]
    assert {name: cell["status"] for name, cell in cells.items()} == {
        "m-cpu-int8": "built",
        "m-cpu-int4": "failed",
        "m-cpu-fp32": "built",
        "m-cpu-fp16": "skipped",
    }
    assert "mean KL" in cells["m-cpu-int4"]["message"]
    assert sorted(path.name for path in output.iterdir()) == ["m-cpu-fp32", "m-cpu-int8"]
    shared = [cell.get("cached", []) for cell in cells.values() if cell["status"] == "built"]
    assert sum("export" in stages for stages in shared) >= 1
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")
    (failure,) = suite.iter("failure")
    assert failure.text is not None
    assert "MISSED" in failure.text


def test_a_table_for_people(write: Callable[..., Path], tmp_path: Path):
    paths = [write(name, target="cpu", precision="int8") for name in ("a", "b")]
    ran = CliRunner().invoke(main, ["build", *map(str, paths), "-o", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0].split() == [
        "cell",
        "target",
        "precision",
        "result",
        "seconds",
        "size",
        "from",
        "the",
        "cache",
    ]
    assert [line.split()[0] for line in lines[2:]] == ["a", "b"]
    assert "export, reference, compile, conformance" in lines[3]


def test_a_cell_that_is_killed_fails_alone(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    killer = tmp_path / "site"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'enginewright.builder.cells' in ' '.join(sys.orig_argv):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    search = os.pathsep.join([str(killer), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", search)
    cells = load_cells([write("a", target="cpu", precision="int8")])
    cells.append(Cell("b", "cpu", "fp16", skipped="no"))
    killed, skipped = run_cells(cells, Order(tmp_path / "out"), jobs=2, tell=lambda line: None)
    assert killed.status == "failed"
    assert "was ended by SIGKILL; was there enough memory?" in str(killed.message)
    assert skipped.status == "skipped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_table_ends_its_cells(
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
):
    scratch, output = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # so that no stage is quick
    recipes = [str(write(name, target="cpu", precision="int8")) for name in ("a", "b")]
    command = [sys.executable, "-m", "enginewright.cli", "build", *recipes, "--jobs", "2"]
    with subprocess.Popen([*command, "-o", str(output)], start_new_session=True) as table:
        try:
            cells = waited_for(lambda: two_at_work(output))
            assert len(list(scratch.glob("enginewright-cell-*"))) == 2
        finally:
            table.send_signal(number)
    waited_for(lambda: not any(Path(f"/proc/{cell}").exists() for cell in cells))
    assert list(scratch.glob("enginewright-cell-*")) == []
    assert list(output.iterdir()) == []


def two_at_work(output: Path) -> list[str]:
    """The processes of the cells, once both have begun."""
    found = [path.name.split(".")[2] for path in output.glob(".*.partial")]
    return found if len(found) == 2 else []


def waited_for(done: Callable[[], Any]) -> Any:
    """What ``done`` returns, once that is true."""
    deadline = time.monotonic() + 60
    while not (found := done()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_cells_trim_the_cache(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = str(write("a", target="cpu", precision="int8"))
    arguments = ["build", recipe, "-o", str(tmp_path / "out"), "--json", "--cache-limit", "0"]
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0, ran.stderr
    assert entries() == []


def test_junit_survives_control_characters(tmp_path: Path):
    outcome = Outcome("a", "cpu", "int8", "failed", message="bad \x1b[31m\x00 text\nsecond")
    write_junit([outcome], tmp_path / "junit.xml")
    (failure,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("failure")
    assert failure.get("message") == "bad \ufffd[31m\ufffd text"


@pytest.mark.slow
def test_cells_as_tasks_of_ray(write: Callable[..., Path], tmp_path: Path):
    """In a process of its own: Ray starts others, and leaves warnings behind."""
    pytest.importorskip("ray")
    recipes = [
        write("a", target="cpu", precision="int8"),
        write("b", target="cpu", precision="int4", conformance={"int4": STRICT}),
    ]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "enginewright.cli", "build", *map(str, recipes)),
            *("-o", str(tmp_path / "out"), "--ray", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "timed out during startup" in ran.stderr:
        pytest.skip("Ray gives itself 30 s to start, which this machine did not do it in")
    assert ran.returncode == 1, ran.stderr
    built, failed = json.loads(ran.stdout)["cells"]
    assert (built["status"], failed["status"]) == ("built", "failed")
    assert (tmp_path / "out" / "a" / "manifest.json").exists()
    assert "mean KL" in failed["message"]


def test_a_device_that_did_not_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    outcome = Outcome("a", "cuda", "fp16", "built", device="not run")
    assert outcome_data(outcome)["device"] == "not run"
    write_junit([outcome], tmp_path / "junit.xml")
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suite.get("failures") == "0"
    (said,) = suite.iter("system-out")
    assert str(said.text).startswith("built, device not run")
    assert "built, device not run" in _page([outcome])


def test_a_cell_for_a_gpu_says_that_it_did_not_run(write: Callable[..., Path], tmp_path: Path):
    recipe = write("a", target="cuda", precision="fp16", conformance={"fp16": LOOSE})
    ran = CliRunner().invoke(main, ["build", str(recipe), "-o", str(tmp_path / "out"), "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["cells"][0]["device"] == "not run"


def test_a_source_alone_is_told_as_a_table(checkpoint: Path, tmp_path: Path):
    junit = tmp_path / "ci" / "junit.xml"
    arguments = ["build", "--source", str(checkpoint), "--set", "target=cpu", "--json"]
    for loose in ("min_top1_agreement=0.2", "max_mean_kl=3.0", "max_perplexity_increase=2.0"):
        arguments += ["--set", f"conformance.int8.{loose}"]
    ran = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "o"), "--junit", str(junit)])
    assert ran.exit_code == 0, ran.output
    (cell,) = json.loads(ran.stdout)["cells"]
    assert (cell["name"], cell["status"]) == (f"{checkpoint.name}-cpu-int8", "built")
    assert ElementTree.parse(junit).getroot().get("tests") == "1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--junit", "/proc/nope/x.xml"], "--junit /proc/nope/x.xml: /proc/nope cannot be made"),
        (["--ray", "--jobs", "2"], "--jobs is for cells of this machine"),
        (["--json", "--tune"], "not with --json"),
    ],
)
def test_what_cannot_be_told_is_refused_before_a_cell_is_built(
    write: Callable[..., Path], tmp_path: Path, arguments: list[str], said: str
):
    recipe = str(write("a", target="cpu", precision="int8"))
    ran = CliRunner().invoke(main, ["build", recipe, "-o", str(tmp_path / "out"), *arguments])
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert not (tmp_path / "out").exists()


def test_each_cell_is_held_to_its_own_lock(write: Callable[..., Path], tmp_path: Path):
    recipes = [str(write(name, target="cpu", precision="int8")) for name in ("a", "b")]
    first, again = tmp_path / "first", ["build", *recipes, "-o", str(tmp_path / "again"), "--json"]
    ran = CliRunner().invoke(main, ["build", *recipes, "-o", str(first)])
    assert ran.exit_code == 0, ran.output
    shutil.copy(first / "b" / "lock.json", first / "b.lock.json")
    shutil.rmtree(first / "b")
    ran = CliRunner().invoke(main, [*again, "--locked", str(first)])
    assert ran.exit_code == 0, ran.output
    ran = CliRunner().invoke(
        main, [*again, "--locked", str(first), "--set", "limits.max_context=32"]
    )
    assert [cell["status"] for cell in json.loads(ran.stdout)["cells"]] == ["failed", "failed"]
    assert "recipe.limits.max_context: 64 is locked, 32 is here" in ran.stdout
    (first / "b.lock.json").unlink()
    ran = CliRunner().invoke(main, [*again, "--locked", str(first)])
    assert ran.exit_code == 1
    assert "has no lock of b: b.lock.json or b/lock.json is wanted there" in ran.stderr


def test_options_for_one_recipe_are_refused_with_several(write: Callable[..., Path]):
    paths = [str(write(name, target="cpu", precision="int8")) for name in ("a", "b")]
    ran = CliRunner().invoke(main, ["build", *paths, "--tune"])
    assert ran.exit_code == 2
    assert "for one recipe" in ran.stderr
