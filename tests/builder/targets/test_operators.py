"""The operators' library: the same bytes each time, known here, and where no compiler makes it."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import onnxruntime
import pytest

from enginewright.builder.targets import operators
from enginewright.plugins import cpu_library
from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.artifact.native_code import this_platform
from enginewright.runtime.errors import BuildError

needs_compiler = pytest.mark.skipif(
    operators.find_compiler() is None, reason="no C++ compiler on this machine"
)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """``compiler(text)``: a compiler that is a shell script, which CXX names."""

    def make(text: str) -> Path:
        script = tmp_path / "compiler"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return script

    return make


@pytest.fixture
def counted(compiler, tmp_path):
    """The real compiler, each of whose calls adds a line to a file."""
    real = operators.find_compiler()
    calls = tmp_path / "calls"
    calls.touch()
    compiler(f'echo "$@" >> {calls}\nexec {real} "$@"')
    return lambda: [line for line in calls.read_text().splitlines() if line != "--version"]


@needs_compiler
def test_the_same_bytes_each_time_and_one_compilation(monkeypatch, tmp_path, counted):
    made = []
    for cache in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        found = operators.compile_library()
        assert found is not None
        made.append(found)
    calls = len(counted())
    assert made[0] != made[1]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert made[0].name == f"operators-{this_platform()}.so"
    assert operators.compile_library() == made[1]
    assert len(counted()) == calls, "kept in the cache"
    for folder in (tmp_path, Path(operators.__file__).parents[4]):
        assert str(folder).encode() not in made[0].read_bytes(), "no folder of this machine"
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(made[0]))


@needs_compiler
def test_what_was_compiled_is_known_to_the_runtime(monkeypatch):
    made = operators.compile_library()
    assert made is not None
    folder = cache_folder()
    assert folder is not None
    known = folder / "native" / hashlib.sha256(made.read_bytes()).hexdigest()
    assert known.is_file()
    known.unlink()
    assert operators.compile_library() == made
    assert known.is_file(), "remembered again where the library is kept already"


@pytest.mark.parametrize("named", [None, ""])
def test_without_a_compiler_there_is_no_library(monkeypatch, tmp_path, named):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if named is not None:
        monkeypatch.setenv("CXX", named)
    assert operators.find_compiler() is None
    assert operators.compile_library() is None


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="CXX=no-such-compiler: no such program"):
        operators.compile_library()


def test_cxx_goes_before_the_path(compiler):
    script = compiler("echo mine 1.0")
    assert operators.find_compiler() == str(script)
    assert operators.compiler_version(str(script)) == "mine 1.0"


def test_a_compiler_that_fails_is_named_with_what_it_says(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script = compiler(
        '[ "$1" = --version ] && echo "old 4.8" && exit\necho "no such standard" >&2\nexit 3'
    )
    with pytest.raises(BuildError, match=r"(?s)no such standard.*set CXX to") as caught:
        operators.compile_library()
    assert str(script) in str(caught.value)
    folder = cache_folder()
    assert folder is not None
    left = [path for path in (folder / "operators").rglob("*") if path.is_file()]
    assert not left, "nothing half made is kept"
    assert not (folder / "native").exists()


def test_a_compiler_that_cannot_even_say_its_version(compiler):
    compiler("exec false")
    with pytest.raises(BuildError, match="--version"):
        operators.compile_library()


def test_another_compiler_makes_another_library(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    says = '[ "$1" = --version ] && echo "VERSION" && exit'
    text = f'{says}\nfor last; do :; done\necho VERSION > "$last"'
    made = set()
    for version in ("mine 1.0", "mine 1.1"):
        compiler(text.replace("VERSION", version))
        found = operators.compile_library()
        assert found is not None
        assert found.read_text() == f"{version}\n"
        made.add(found)
    assert len(made) == 2


def test_all_sources_belong_to_the_key(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler('[ "$1" = --version ] && echo 1 && exit\nfor last; do :; done\necho x > "$last"')
    sources = [
        shutil.copytree(folder, tmp_path / "sources" / str(at))
        for at, folder in enumerate(cpu_library.SOURCES)
    ]
    monkeypatch.setattr(cpu_library, "SOURCES", sources)
    first = operators.compile_library()
    assert operators.compile_library() == first
    for path in sorted((tmp_path / "sources").glob("*/*")):
        path.write_text(path.read_text() + "\n")
        changed = operators.compile_library()
        assert changed != first, f"{path.name} was changed"
        first = changed
    assert os.environ["CXX"]


@pytest.fixture
def carried(monkeypatch, tmp_path):
    """A library that the installed package brings, made from the sources as they are."""
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    library = folder / cpu_library.file_name(this_platform())
    library.write_bytes(b"prebuilt")
    cpu_library.write_record(folder, "theirs 1.0", this_platform())
    monkeypatch.setattr(cpu_library, "PREBUILT", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return library


@pytest.mark.parametrize("with_compiler", [True, False])
def test_what_the_package_brings_goes_before_compiling(
    monkeypatch, tmp_path, carried, with_compiler
):
    if not with_compiler:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert operators.compile_library() == carried
    assert operators.has_library()
    assert operators.library_compiler() == "theirs 1.0"
    folder = cache_folder()
    assert folder is not None
    assert (folder / "native" / hashlib.sha256(b"prebuilt").hexdigest()).is_file()


def test_what_the_package_brings_is_left_where_cxx_asks_for_a_compiler(carried, compiler):
    compiler(
        '[ "$1" = --version ] && echo mine 1.0 && exit\nfor last; do :; done\necho x > "$last"'
    )
    made = operators.compile_library()
    assert made is not None
    assert made.read_text() == "x\n"
    assert operators.library_compiler() == "mine 1.0"


@pytest.mark.parametrize("wrong", ["sources", "flags", "library", "record", "no record"])
def test_what_the_package_brings_is_left_if_it_is_not_of_these_sources(
    monkeypatch, tmp_path, carried, wrong
):
    record = carried.with_suffix(".json")
    if wrong == "sources":
        sources = [
            shutil.copytree(cpu_library.SOURCES[0], tmp_path / "0"),
            *cpu_library.SOURCES[1:],
        ]
        monkeypatch.setattr(cpu_library, "SOURCES", sources)
        sources[0].joinpath("vectors.h").write_text("// another\n")
    elif wrong == "flags":
        monkeypatch.setattr(cpu_library, "LINK_FLAGS", ("-shared",))
    elif wrong == "library":
        carried.write_bytes(b"damaged")
    elif wrong == "record":
        record.write_text('{"sha256": 1')
    else:
        record.unlink()
    assert operators.carried_library() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not operators.has_library()
    assert operators.compile_library() is None
