"""The cache of stages: made once, and a disk that is full is named as the cache's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from enginewright.builder.cache import cached_file
from enginewright.builder.publish import staging
from enginewright.runtime.errors import BuildError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "enginewright"


def test_an_entry_is_made_once(cache: Path) -> None:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("x")

    first = cached_file("stage", "key", "name", make)
    assert cached_file("stage", "key", "name", make) == first == cache / "stage" / "key" / "name"
    assert len(made) == 1
    assert [path.name for path in first.parent.iterdir()] == ["name"]


def test_what_fails_to_be_made_leaves_no_entry(cache: Path) -> None:
    def make(path: Path) -> None:
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached_file("stage", "key", "name", make)
    assert list((cache / "stage" / "key").iterdir()) == []


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
        cached_file("export", "key", "graph.onnx", lambda path: path.write_bytes(bytes(8192)))
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
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written_is_named(cache: Path, tmp_path: Path) -> None:
    cache.mkdir(parents=True, mode=0o700)
    (cache / "export").write_text("a file where a folder should be")
    said = rf"cannot write to the cache folder {cache} \("
    with staging(tmp_path / "output", "a"), pytest.raises(BuildError, match=said):
        cached_file("export", "key", "name", Path.touch)


def test_a_file_that_is_missing_elsewhere_is_not_blamed_on_a_folder(tmp_path: Path) -> None:
    missing = tmp_path / "checkpoint" / "model.safetensors"
    with (
        pytest.raises(FileNotFoundError, match=r"model\.safetensors"),
        staging(tmp_path / "output", "a"),
    ):
        cached_file("export", "key", "name", lambda path: path.write_bytes(missing.read_bytes()))
