"""lock.json: what a locked build refuses, and what it reproduces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.builder.lock import read_lock
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import Recipe, make_recipe
from enginewright.builder.targets import operators
from enginewright.builder.targets.operators import find_compiler
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import TuningEntry
from enginewright.runtime.errors import BuildError

LOOSE = {"min_top1_agreement": 0.2, "max_mean_kl": 3.0, "max_perplexity_increase": 2.0}


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {})


ENGINE = {
    "target": "cpu",
    "plan": "native",
    "precision": "int8",
    "fingerprint": "sha256:0",
    "reproducible": True,
}


def recipe_for(checkpoint: Path, **changes: Any) -> Recipe:
    fields = {
        "name": "tiny",
        "source": {"path": str(checkpoint)},
        "target": "cpu",
        "precision": "int8",
        "limits": {"max_context": 96, "max_batch": 4},
        "conformance": {"int8": LOOSE, "int4": LOOSE},
    }
    return make_recipe(fields | changes)


def quietly(line: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: Any) -> Path:
    return build(recipe_for(checkpoint), tmp_path_factory.mktemp("locked"), progress=quietly)


def test_the_lock_pins_recipe_source_tools_machine_and_engines(artifact: Path):
    lock, manifest = read_lock(artifact), Artifact.open(artifact).manifest
    assert lock.source_digest == manifest.source.digest
    assert lock.tools == manifest.tools
    assert [row.fingerprint for row in lock.engines] == [
        entry.fingerprint for entry in manifest.engines
    ]
    assert all(row.reproducible for row in lock.engines)
    assert ("c++" in lock.tools) == (find_compiler() is not None)


def test_what_did_not_change_is_built_again(checkpoint: Path, artifact: Path, tmp_path: Path):
    again = build(recipe_for(checkpoint), tmp_path, progress=quietly, locked=artifact)
    assert (again / "lock.json").read_bytes() == (artifact / "lock.json").read_bytes()
    assert (again / "manifest.json").read_bytes() == (artifact / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "int4"}, "recipe.precision: int8 is locked, int4 is here"),
        (
            {"limits": {"max_context": 64, "max_batch": 4}},
            "recipe.limits.max_context: 96 is locked, 64 is here",
        ),
        (
            {"conformance": {"int8": LOOSE | {"max_mean_kl": 2.5}}},
            "recipe.conformance.int8.max_mean_kl: 3.0 is locked, 2.5 is here",
        ),
    ],
)
def test_drift_of_the_recipe_is_named(
    checkpoint: Path, artifact: Path, tmp_path: Path, changes: dict[str, Any], said: str
):
    with pytest.raises(BuildError) as caught:
        build(recipe_for(checkpoint, **changes), tmp_path, progress=quietly, locked=artifact)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "field",
    [
        "source_digest",
        "machine",
        "tools.torch",
        "tools.python",
        "tools.protobuf",
        "tools.code builder/",
        "tools.code plugins/",
        "tools.c++",
    ],
)
def test_drift_of_anything_else_is_named(
    checkpoint: Path, artifact: Path, tmp_path: Path, field: str
):
    data = json.loads((artifact / "lock.json").read_text())
    holder = data["tools"] if "." in field else data
    name = field.partition(".")[2] or field
    if name not in holder:
        pytest.skip("no C++ compiler on this machine")
    holder[name] = "another"
    lock = tmp_path / "lock.json"
    lock.write_text(json.dumps(data))
    with pytest.raises(BuildError, match=f"{name.replace('+', '.')}: another is locked, "):
        build(recipe_for(checkpoint), tmp_path / "out", progress=quietly, locked=lock)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_engine_that_differs_is_named(checkpoint: Path, artifact: Path, tmp_path: Path):
    data = json.loads((artifact / "lock.json").read_text())
    data["engines"][0]["fingerprint"] = f"sha256:{'0' * 64}"
    lock = tmp_path / "lock.json"
    lock.write_text(json.dumps(data))
    with pytest.raises(BuildError, match=r"engines\.0\.fingerprint: sha256:0000"):
        build(recipe_for(checkpoint), tmp_path / "out", progress=quietly, locked=lock)


def test_a_tuned_choice_is_taken_from_the_lock(checkpoint: Path, artifact: Path, tmp_path: Path):
    data = json.loads((artifact / "lock.json").read_text())
    if len(data["engines"]) < 2:
        pytest.skip("no C++ compiler on this machine: there is one plan")
    data["engines"].reverse()
    assert data["engines"][1]["plan"] == "native"
    data["engines"][1]["cpu_kernels"] = "portable"
    times = {"native": {"portable": {"decode": 1.0}}}
    data["tuning"] = {"processor": "a one", "threads": 3, "seconds": {}, "cpu_kernels": times}
    data["tuning"]["chosen_by"] = "decode"
    lock = tmp_path / "lock.json"
    lock.write_text(json.dumps(data))
    built = build(recipe_for(checkpoint), tmp_path / "out", progress=quietly, locked=lock)
    manifest = Artifact.open(built).manifest
    assert [entry.plan for entry in manifest.engines] == ["plain", "native"]
    assert manifest.tuning == TuningEntry("a one", 3, {}, times, "decode")
    assert manifest.engines[1].cpu_kernels == "portable"
    assert manifest.conformance["native"]["cpu_kernels"] == "portable"
    assert json.loads((built / "lock.json").read_text()) == data


@pytest.mark.parametrize("content", ["{", "[]", '{"recipe": {}}'])
def test_what_is_no_lock_is_refused(tmp_path: Path, content: str):
    place = tmp_path / "lock.json"
    place.write_text(content)
    with pytest.raises(BuildError, match="not a lock of this version"):
        read_lock(place)
    with pytest.raises(BuildError, match="no lock can be read here"):
        read_lock(tmp_path / "elsewhere.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engines": {}}, "engines: it must be a list"),
        ({"engines": None}, "engines: None is not legal: it must be a list"),
        ({"engines": [{}]}, "engines.0.plan: missing"),
        ({"tuning": {"x": 1}}, "tuning.processor: missing"),
        (
            {"engines": [ENGINE | {"cpu_kernels": "avx1"}]},
            "engines.0.cpu_kernels: 'avx1' is not legal: ",
        ),
        ({"recipe": 5}, "recipe: 5 is not legal: it must be a mapping"),
        ({"tools": [1]}, "tools: [1] is not legal: it must be a mapping"),
        ({"machines": "x"}, "machines: unknown key; did you mean machine?"),
    ],
)
def test_a_wrong_field_of_a_lock_is_named_before_the_build(
    checkpoint: Path, artifact: Path, tmp_path: Path, changes: dict[str, Any], said: str
):
    lock = tmp_path / "lock.json"
    lock.write_text(json.dumps(json.loads((artifact / "lock.json").read_text()) | changes))
    with pytest.raises(BuildError) as caught:
        build(recipe_for(checkpoint), tmp_path / "out", progress=quietly, locked=lock)
    assert said in str(caught.value)
    assert "Lock" not in str(caught.value)
    assert not (tmp_path / "out").exists()


_BUILD = """
import os, sys
from pathlib import Path
if sys.argv[4] == "1":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import load_recipe
from enginewright.builder.targets import operators
if sys.argv[3] == "plain":
    operators.compile_library = lambda: None
build(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]), progress=lambda line: None)
"""


def built_in(folder: Path, checkpoint: Path, plans: str, threads: int, roots: list[str]) -> Path:
    """An artifact of a process with its own folder, cache, cores and number of threads."""
    folder.mkdir()
    shutil.copytree(checkpoint, folder / "checkpoint")
    data = recipe_for(checkpoint).model_dump(mode="json", exclude_unset=True)
    data["source"] = {"path": "checkpoint"}
    (folder / "recipe.yaml").write_text(json.dumps(data))
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(roots),
        "PYTHONHASHSEED": str(threads),
    }
    arguments = [str(folder / "recipe.yaml"), str(folder), plans, str(threads)]
    subprocess.run([sys.executable, "-c", _BUILD, *arguments], env=environment, check=True)
    return folder / "tiny"


def assert_same(one: Path, other: Path) -> None:
    """Every file but the evidence, to the last byte."""
    names = [
        {
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.is_file() and "evidence" not in path.relative_to(root).parts
        }
        for root in (one, other)
    ]
    assert names[0] == names[1]
    differing = [n for n in sorted(names[0]) if (one / n).read_bytes() != (other / n).read_bytes()]
    assert differing == []


def test_two_folders_two_caches_two_times_give_the_same_bytes(checkpoint: Path, tmp_path: Path):
    roots = [path for path in sys.path if path]
    one = built_in(tmp_path / "one", checkpoint, "plain", 1, roots)
    other = built_in(tmp_path / "another folder", checkpoint, "plain", 2, roots)
    assert_same(one, other)


@pytest.mark.slow
def test_two_clones_give_the_same_bytes_library_and_all(checkpoint: Path, tmp_path: Path):
    if find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    built = []
    for name in ("clone", "another-clone"):
        clone = tmp_path / name
        for part in ("builder", "runtime", "plugins"):
            source = Path(operators.__file__).parents[4] / part
            shutil.copytree(source, clone / part, ignore=shutil.ignore_patterns("__pycache__"))
        roots = [str(clone / part) for part in ("builder", "runtime", "plugins")]
        built.append(built_in(tmp_path / f"in-{name}", checkpoint, "all", 1, roots))
    assert list((built[0] / "engine").glob("*.so"))
    assert_same(*built)
