"""The stage cache: what is made once, waited for, found damaged, collected; and a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enginewright.builder.cache import (
    StageCache,
    cached_file,
    collect,
    digest,
    entries,
    leftovers,
    place_file,
)
from enginewright.builder.publish import staging
from enginewright.runtime.errors import BuildError

INPUTS = {"recipe.precision": "int8", "code passes/quantize.py": "a" * 32}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "enginewright"


def write(folder: Path) -> None:
    (folder / "engine").mkdir()
    (folder / "engine" / "weights").write_bytes(b"12345678")


def made_with(inputs: dict[str, str], stage: str = "compile") -> tuple[StageCache, Path]:
    seen = StageCache()
    with seen.entry(stage, inputs, write) as folder:
        return seen, folder


def test_an_entry_is_made_once(cache: Path) -> None:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("x")

    first = cached_file("stage", INPUTS, "name", make)
    assert cached_file("stage", INPUTS, "name", make) == first
    assert first == cache / "stages" / "stage" / digest(INPUTS) / "name"
    assert len(made) == 1
    assert sorted(path.name for path in first.parent.iterdir()) == ["entry.json", "name"]


def test_what_fails_to_be_made_leaves_no_entry(cache: Path) -> None:
    def make(path: Path) -> None:
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached_file("stage", INPUTS, "name", make)
    assert [path for path in (cache / "stages").rglob("*") if path.is_dir()] == [
        cache / "stages" / "stage"
    ]


def test_the_changed_input_is_named() -> None:
    seen, _ = made_with(INPUTS)
    assert [(each.hit, each.why) for each in seen.decisions] == [
        (False, "the cache holds nothing of this stage yet")
    ]
    assert made_with(INPUTS)[0].decisions[0].hit
    seen, _ = made_with({**INPUTS, "recipe.precision": "int4"})
    assert seen.decisions[0].why == "changed: recipe.precision (int8 -> int4)"
    seen, _ = made_with({**INPUTS, "code passes/quantize.py": "b" * 32})
    assert str(seen.decisions[0]) == "compile: ran: changed: code passes/quantize.py"


def test_the_most_alike_entry_is_what_is_compared_with() -> None:
    made_with({"a": "1", "b": "1", "c": "1"})
    made_with({"a": "2", "b": "2", "c": "2"})
    seen, _ = made_with({"a": "1", "b": "1", "c": "3"})
    assert seen.decisions[0].why == "changed: c (1 -> 3)"


@pytest.mark.parametrize("damage", ["altered", "cut", "missing", "record"])
def test_a_damaged_entry_is_made_again_and_told(damage: str) -> None:
    _, folder = made_with(INPUTS)
    weights = folder / "engine" / "weights"
    if damage == "altered":
        weights.write_bytes(b"1234567x")
    elif damage == "cut":
        weights.write_bytes(b"1234")
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "entry.json").write_text("{")
    told: list[str] = []
    seen = StageCache(told.append)
    with seen.entry("compile", INPUTS, write) as folder:
        assert (folder / "engine" / "weights").read_bytes() == b"12345678"
    assert not seen.decisions[0].hit
    (line,) = told
    assert "damaged" in line
    assert "made again" in line
    assert made_with(INPUTS)[0].decisions[0].hit


def test_what_was_not_used_for_longest_is_collected_first() -> None:
    folders = [made_with({"n": str(n)})[1] for n in range(3)]
    for age, folder in enumerate(folders):
        os.utime(folder / "entry.json", (1e9 - age, 1e9 - age))
    assert [entry.size for entry in entries()] == [8, 8, 8]
    removed = collect(17)
    assert [entry.folder for entry in removed] == [folders[2]]
    assert [entry.folder for entry in entries()] == folders[:2]
    assert collect(0)
    assert entries() == []


def test_an_entry_in_use_is_not_collected() -> None:
    seen = StageCache()
    with seen.entry("compile", INPUTS, write) as folder:
        assert collect(0) == []
        assert (folder / "engine" / "weights").exists()
    assert len(collect(0)) == 1


def test_a_large_file_is_shared_and_a_small_one_copied(tmp_path: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(bytes(1 << 20))
    small.write_bytes(b"x")
    for source in (large, small):
        place_file(source, tmp_path / "artifact" / source.name)
    assert large.samefile(tmp_path / "artifact" / "large")
    assert not small.samefile(tmp_path / "artifact" / "small")


_MAKER = """
import sys, time
from pathlib import Path
from enginewright.builder.cache import StageCache
def make(folder):
    print("making", flush=True)
    (folder / "half").write_text("half")
    time.sleep(float(sys.argv[1]))
cache = StageCache(lambda line: print(line, flush=True))
with cache.entry("export", {"a": "1"}, make):
    print("hit" if cache.decisions[0].hit else "made", flush=True)
"""


def _start(seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _MAKER, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_two_at_once_one_makes_and_the_other_waits() -> None:
    with _start(4) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "making\n"
        with _start(0) as second:
            assert second.stdout is not None
            assert second.stdout.read().splitlines() == [
                "export: waiting for another build, which makes the same",
                "hit",
            ]
        assert first.stdout.read() == "made\n"


def half_made(cache: Path) -> bool:
    return any(path.stat().st_size for path in cache.glob("stages/export/.*.partial/half"))


def test_what_a_killed_maker_left_is_removed_and_told(cache: Path) -> None:
    with _start(60) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not half_made(cache):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    with _start(0) as process:
        assert process.stdout is not None
        said = process.stdout.read().splitlines()
    assert said == [
        "export: a build ended while it made this; what it left is removed",
        "making",
        "made",
    ]
    assert not list(cache.glob("stages/export/.*.partial"))


def killed_maker(cache: Path) -> None:
    with _start(60) as process:
        waited = time.monotonic() + 30
        while not half_made(cache):
            assert time.monotonic() < waited
            time.sleep(0.01)
        assert leftovers() == []  # it is at work
        assert collect(0) == []
        process.send_signal(signal.SIGKILL)


def test_leftovers_are_told_and_collected_locks_too(cache: Path) -> None:
    killed_maker(cache)
    made_with(INPUTS)[1].joinpath("entry.json").write_text("{")
    assert sorted((each.stage, each.size) for each in leftovers()) == [
        ("compile", 9),
        ("export", 4),
    ]
    assert entries() == []
    _, kept = made_with({"n": "1"})
    assert sorted(each.stage for each in collect(8)) == ["compile", "export"]
    assert leftovers() == []
    assert [entry.folder for entry in entries()] == [kept]
    assert [path.name for path in cache.rglob("*.lock")] == [f".{kept.name}.lock"]
    collect(0)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


_NO_SPACE = """
import resource, signal, sys
from pathlib import Path
from enginewright.builder.cache import cached_file
from enginewright.builder.publish import staging
from enginewright.runtime.errors import BuildError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with staging(Path(sys.argv[1]), "a") as folder:
        cached_file("export", {}, "graph.onnx", lambda path: path.write_bytes(bytes(8192)))
except BuildError as error:
    print(error)
"""


def test_no_space_left_in_the_cache_names_the_cache(cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    ran = subprocess.run(
        [sys.executable, "-c", _NO_SPACE, str(output)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith(f"no space left in the cache folder {cache} (")
    assert "XDG_CACHE_HOME" in ran.stdout
    assert str(output) not in ran.stdout
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_cache_that_cannot_be_written_is_named(cache: Path, tmp_path: Path) -> None:
    cache.mkdir(parents=True, mode=0o700)
    (cache / "stages").write_text("a file where a folder should be")
    said = rf"cannot write to the cache folder {cache} \("
    with staging(tmp_path / "output", "a"), pytest.raises(BuildError, match=said):
        cached_file("export", INPUTS, "name", Path.touch)


def test_a_file_that_is_missing_elsewhere_is_not_blamed_on_a_folder(tmp_path: Path) -> None:
    missing = tmp_path / "checkpoint" / "model.safetensors"
    with (
        pytest.raises(FileNotFoundError, match=r"model\.safetensors"),
        staging(tmp_path / "output", "a"),
    ):
        cached_file("export", INPUTS, "name", lambda path: path.write_bytes(missing.read_bytes()))


def test_an_entry_of_another_version_is_left_out_of_the_list(cache: Path) -> None:
    _, folder = made_with(INPUTS)
    (folder / "entry.json").write_text(json.dumps({"version": 9}))
    assert entries() == []
