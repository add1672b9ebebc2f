"""``enginewright plan`` and ``enginewright cache``: what is said, and what exit codes mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginewright.cli.main import main

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {})


@pytest.fixture
def write(tmp_path: Path, checkpoint: Path) -> Callable[..., str]:
    """``write(**fields)``: the path of a recipe's file."""

    def write(**fields: Any) -> str:
        data = {"name": "tiny", "source": {"path": str(checkpoint)}, "limits": {"max_context": 64}}
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(data | fields))  # which is YAML as well
        return str(path)

    return write


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, arguments)


def test_a_plan_for_people(write: Callable[..., str]):
    ran = run("plan", write(target="cpu", precision="int8"), "--memory", "1GiB")
    assert ran.exit_code == 0, ran.output
    lines = ran.stdout.splitlines()
    assert lines[0] == "plan of tiny"
    assert any(line.split()[:3] == ["cache", "per", "token"] for line in lines)
    assert any("1.1 GB given" in line for line in lines)
    assert lines[-1] == "fits"


def test_what_does_not_fit_is_said_and_exits_1(write: Callable[..., str]):
    ran = run("plan", write(target="cpu", precision="int8"), "--memory", "100MB")
    assert ran.exit_code == 1
    assert "does not fit: memory to serve: " in ran.stdout
    assert "no context would fit" in ran.stdout
    ran = run("plan", write(target="cpu", precision="int8"), "--memory", "1")
    assert "tokens, 1 B given" in ran.stdout


def test_each_cell_of_a_matrix_and_each_variant_is_planned(write: Callable[..., str]):
    matrix = {"target": ["cpu", "cuda"], "precision": ["int8", "fp16"]}
    ran = run("plan", write(matrix=matrix), "--json", "--memory", "24GiB")
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert told["fits"]
    assert [each["name"] for each in told["plans"]] == ["tiny-cpu-int8", "tiny-cuda-fp16"]
    assert {each["kv_bytes_per_token"] for each in told["plans"]} == {2 * 2 * 2 * 16 * 2}
    variants = [{"target": "cuda", "precision": "fp16"}, {"target": "cpu", "precision": "int4"}]
    ran = run("plan", write(variants=variants), "--json")
    names = [each["name"] for each in json.loads(ran.stdout)["plans"]]
    assert names == ["tiny.cuda-fp16", "tiny.cpu-int4"]


def test_nothing_is_left_behind(write: Callable[..., str], tmp_path: Path):
    run("plan", write(target="cpu", precision="int8"), "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["24 apples", "GiB", "-1GB", ""])
def test_a_size_of_a_wrong_form_is_a_wrong_usage(write: Callable[..., str], size: str):
    ran = run("plan", write(target="cpu", precision="int8"), "--memory", size)
    assert ran.exit_code == 2
    assert "24GiB" in ran.stderr


def test_the_cache_is_listed_and_trimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from enginewright.builder.cache import cached_file

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("a", "b"):
        cached_file("export", {"name": name}, "graph", lambda path: path.write_bytes(bytes(1000)))
    listed = run("cache", "ls")
    assert listed.exit_code == 0, listed.output
    assert listed.stdout.splitlines()[-1] == "2 entries, 2.0 kB"
    told = json.loads(run("cache", "ls", "--json").stdout)
    assert told["total_bytes"] == 2000
    assert {entry["inputs"]["name"] for entry in told["entries"]} == {"a", "b"}
    trimmed = run("cache", "gc", "--max-size", "1.5kB")
    (tmp_path / "enginewright" / "stages" / "export" / ".abc.partial").mkdir()
    assert "leftover" in run("cache", "ls").stdout.splitlines()[-2]
    assert [each["key"] for each in json.loads(run("cache", "ls", "--json").stdout)["leftovers"]]
    assert trimmed.stdout == "removed 1 entries, 1.0 kB; 1 stay, 1.0 kB\n"
    assert run("cache", "gc", "--max-size", "0").stdout.startswith(
        "removed 1 entries and 1 leftovers"
    )
