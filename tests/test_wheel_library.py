"""The wheel's prebuilt operators: when it has them, and what they are good for once installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from enginewright.builder.targets import operators
from enginewright.plugins import cpu_library
from enginewright.runtime.artifact.artifact import Artifact, sha256_file
from enginewright.runtime.artifact.native_code import this_platform

ROOT = Path(__file__).resolve().parent.parent
PREBUILT = "enginewright/plugins/prebuilt"
LIBRARY = f"{PREBUILT}/{cpu_library.file_name(this_platform())}"
RECORD = f"{PREBUILT}/{cpu_library.record_name(this_platform())}"
COMPILES = """
[ "$1" = --version ] && echo "mine 1.0" && exit
for last; do :; done
printf 'a library\\0GLIBC_2.4\\0GLIBC_2.17\\0GLIBC_2.2.5\\0' > "$last"
"""
FAILS = '[ "$1" = --version ] && echo "mine 1.0" && exit\nexit 3'

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="wheels of Linux alone have them")


@pytest.fixture
def compiler(tmp_path: Path) -> Callable[[str], Path]:
    """``compiler(text)``: a compiler that is a shell script and notes each call in ``calls``."""

    def make(text: str) -> Path:
        script = tmp_path / "compiler"
        script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "calls"}\n{text}')
        script.chmod(0o755)
        return script

    return make


def built(folder: Path, kind: str = "wheel", **variables: str) -> Path:
    """The wheel of this checkout, as hatchling makes it with those environment variables."""
    folder.mkdir(exist_ok=True)
    code = f"from hatchling.build import build_{kind} as build; build({str(folder)!r})"
    environment = {"HOME": str(folder), "PATH": os.environ["PATH"], **variables}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_where_a_compiler_is_the_wheel_carries_what_it_made(
    tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = built(tmp_path / "dist", CXX=str(compiler(COMPILES)))

    assert path.name.endswith(f"-py3-none-manylinux_2_17_{os.uname().machine}.whl")
    with zipfile.ZipFile(path) as wheel:
        assert wheel.read(LIBRARY).startswith(b"a library")
        (info,) = (name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: false" in wheel.read(info).decode()
        wheel.extractall(tmp_path / "installed")
    monkeypatch.setattr(cpu_library, "PREBUILT", tmp_path / "installed" / PREBUILT)
    found = operators.carried_library()
    assert found is not None, "made from these sources and flags"
    assert found.compiler == "mine 1.0"


@pytest.mark.parametrize("why", ["it fails", "there is none", "it is not wanted"])
def test_else_the_wheel_is_for_any_platform(
    tmp_path: Path, compiler: Callable[[str], Path], why: str
) -> None:
    script = str(compiler(FAILS if why == "it fails" else COMPILES))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "c++").symlink_to(script)
    asked = {
        "it fails": {"PATH": str(tmp_path / "bin")},
        "there is none": {"PATH": str(tmp_path)},
        "it is not wanted": {"CXX": script, "HATCH_BUILD_NO_HOOKS": "true"},
    }

    path = built(tmp_path / "dist", **asked[why])

    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as wheel:
        assert not [name for name in wheel.namelist() if name.startswith(PREBUILT)]


def test_of_a_compiler_that_was_asked_for_and_fails_there_is_no_wheel(
    tmp_path: Path, compiler: Callable[[str], Path]
) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        built(tmp_path / "dist", CXX=str(compiler(FAILS)))
    assert "the C++ compiler failed" in failed.value.stderr.decode()
    assert not list((tmp_path / "dist").glob("*.whl"))
    with pytest.raises(subprocess.CalledProcessError) as failed:
        built(tmp_path / "dist", CXX="ccache c++")
    assert "CXX=ccache c++: no such program" in failed.value.stderr.decode()


def test_an_editable_install_compiles_nothing(
    tmp_path: Path, compiler: Callable[[str], Path]
) -> None:
    path = built(tmp_path / "dist", "editable", CXX=str(compiler(COMPILES)))

    assert path.name.endswith("-py3-none-any.whl")
    assert not (tmp_path / "calls").exists()


_BUILD = """
import sys
from pathlib import Path
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import make_recipe
from enginewright.builder.targets import operators
assert operators.__file__.startswith(sys.argv[1]), operators.__file__
assert operators.find_compiler() is None
recipe = make_recipe({"name": "tiny", "source": {"path": sys.argv[2]}, "target": "cpu",
                      "precision": "fp32", "limits": {"max_context": 96, "max_batch": 2}})
build(recipe, Path(sys.argv[3]), progress=lambda line: None)
"""
_RUN = """
import sys
from enginewright.runtime import LLM
with LLM(sys.argv[1], threads=1) as llm:
    print(llm.engine_info.kv_layout)
"""


@pytest.mark.slow
@pytest.mark.skipif(operators.find_compiler() is None, reason="no C++ compiler on this machine")
def test_what_is_installed_builds_and_runs_native_plans_without_a_compiler(
    tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    wheel, installed = built(tmp_path / "dist"), tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(installed), str(wheel)], check=True)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", {})

    def python(code: str, cache: str, *arguments: Path) -> str:
        environment = {
            "HOME": str(tmp_path),
            "PATH": str(tmp_path),
            "PYTHONPATH": str(installed),
            "XDG_CACHE_HOME": str(tmp_path / cache),
        }
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    python(_BUILD, "one", installed, checkpoint, tmp_path / "out")
    artifact = tmp_path / "out" / "tiny"
    manifest = Artifact.open(artifact).manifest
    native = manifest.engines[0]
    assert native.plan == "native"
    assert native.library is not None
    assert manifest.files[native.library].sha256 == sha256_file(installed / LIBRARY)
    record = json.loads((installed / RECORD).read_text("utf-8"))
    lock = json.loads((artifact / "lock.json").read_text("utf-8"))
    assert lock["tools"]["c++"] == record["inputs"]["compiler"]
    assert python(_RUN, "another", artifact) == "paged", "known to the package, on any machine"
