"""Builds that are killed, at once, or out of disk: what is visible, and what the next one says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STAGES = ("source", "plan", "export", "reference", "compile", "conformance", "publish")

_BUILD = """
import sys
from pathlib import Path
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import make_recipe
from enginewright.builder.targets import operators
from enginewright.runtime.errors import BuildError
operators.compile_library = lambda: None
recipe = make_recipe({"name": "tiny", "source": {"path": sys.argv[1]}, "target": "cpu",
                      "precision": "fp32", "limits": {"max_context": 128, "max_batch": 24}})
try:
    build(recipe, Path(sys.argv[2]), progress=lambda line: print(line, flush=True))
except BuildError as error:
    print(f"error: {error}", flush=True)
    sys.exit(1)
"""


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {})


@pytest.fixture
def start(checkpoint: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """``start(output)``: a build in a process of its own, with a cache of this test."""

    def start(output: Path | None = None, cache: Path | None = None) -> subprocess.Popen[str]:
        place = str(output or tmp_path / "out")
        return subprocess.Popen(
            [sys.executable, "-c", _BUILD, str(checkpoint), place],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(cache or tmp_path / "cache")},
        )

    return start


def visible(output: Path) -> list[str]:
    return [path.name for path in output.iterdir() if path.name[0] != "."]


def digest_of(output: Path) -> str:
    return str(json.loads((output / "tiny" / "manifest.json").read_text())["sha256"])


def free_bytes(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    said, _ = process.communicate()
    return said.splitlines()


def kill_at(process: subprocess.Popen[str], stage: str, later: float) -> bool:
    """Kill in the stage, so much after its beginning; whether it was in time."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"{stage} ..."):
            time.sleep(later)
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.read()
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("older", [False, True], ids=["first", "over an older one"])
def test_a_build_killed_in_any_stage_leaves_nothing_half_written(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, stage: str, older: bool
):
    output = tmp_path / "out"
    if older:
        with start() as process:
            assert lines_of(process)
        assert process.returncode == 0
        before = digest_of(output)
    with start(cache=tmp_path / "another cache") as process:
        killed = kill_at(process, stage, 0.05)
    if stage != "publish":  # which may be over before the signal comes
        assert killed
        assert visible(output) == (["tiny"] if older else [])
    if older:
        assert digest_of(output) == before
    with start(cache=tmp_path / "another cache") as process:
        said = lines_of(process)
    assert process.returncode == 0
    assert [path.name for path in output.iterdir()] == ["tiny"]
    if killed and stage != "publish":
        assert any("was ended" in line and "is removed" in line for line in said)
    if older:
        assert digest_of(output) == before


def test_a_build_killed_while_it_fills_the_cache_is_told_and_made_up_for(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    cache = tmp_path / "cache" / "enginewright" / "stages"
    with start() as process:
        while not list(cache.glob("export/.*.partial")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert visible(tmp_path / "out") == []
    with start() as process:
        said = lines_of(process)
    assert process.returncode == 0
    assert "export: a build ended while it made this; what it left is removed" in said
    assert any(line.startswith("an earlier build (process ") for line in said)
    assert not list(cache.rglob("*.partial"))


def test_two_builds_of_one_recipe_at_once_share_their_stages(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    with start() as first, start() as second:
        said = [lines_of(process) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny"]
    taken = [any(line.startswith("export (from the cache): ") for line in ran) for ran in said]
    assert sorted(taken) == [False, True]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``small_disk(size)``: a file system of that size."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        place = tmp_path / f"disk-{size}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this user cannot mount a small file system: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk_is_told_with_its_place_and_leaves_nothing(
    start: Callable[..., subprocess.Popen[str]],
    small_disk: Callable[[str], Path],
    tmp_path: Path,
):
    disk = small_disk("1m")
    with start(disk) as process:
        said = lines_of(process)
    assert process.returncode == 1
    error = "\n".join(said[next(i for i, line in enumerate(said) if "error: " in line) :])
    assert "disk: " in error
    assert f"free at {disk}" in error
    assert list(disk.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_cache_on_a_full_disk_is_told_and_the_next_build_succeeds(
    start: Callable[..., subprocess.Popen[str]],
    small_disk: Callable[[str], Path],
    tmp_path: Path,
):
    disk = small_disk("8m")
    with start(cache=disk) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("export ..."):  # when the plan has found enough
                (disk / "ballast").write_bytes(bytes(free_bytes(disk) - 4096))
                break
        said = lines_of(process)
    assert process.returncode == 1
    assert said[-1].startswith(f"error: no space left in the cache folder {disk}")
    assert "enginewright cache gc" in said[-1]
    assert visible(tmp_path / "out") == []
    (disk / "ballast").unlink()
    with start(cache=disk) as process:
        assert lines_of(process)
    assert process.returncode == 0
