"""An artifact appears at once or not at all, and an older one stays until then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from enginewright.builder.publish import hash_files, staging
from enginewright.runtime.artifact.publishing import publish
from enginewright.runtime.errors import BuildError


def _fill(folder, text: str) -> None:
    (folder / "engine").mkdir(exist_ok=True)
    (folder / "engine" / "file").write_text(text)
    (folder / "manifest.json").write_text("{}")


def test_published_in_one_step_over_an_older_one(tmp_path):
    for text in ("old", "new"):
        with staging(tmp_path, "a") as folder:
            _fill(folder, text)
            publish(folder, tmp_path / "a")
    assert (tmp_path / "a" / "engine" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _fail_half_way(output) -> None:
    with staging(output, "a") as folder:
        _fill(folder, "new")
        raise ZeroDivisionError


def test_a_failed_build_leaves_the_older_artifact_and_nothing_else(tmp_path):
    with staging(tmp_path, "a") as folder:
        _fill(folder, "old")
        publish(folder, tmp_path / "a")
    with pytest.raises(ZeroDivisionError):
        _fail_half_way(tmp_path)
    assert (tmp_path / "a" / "engine" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_evidence_is_not_hashed(tmp_path):
    _fill(tmp_path, "x")
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "build.json").write_text("{}")
    assert list(hash_files(tmp_path)) == ["engine/file", "manifest.json"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_artifact_is_never_replaced(tmp_path, kind):
    place = tmp_path / "a"
    if kind == "folder":
        place.mkdir()
        (place / "precious.txt").write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BuildError, match="no artifact of an earlier build"):
        _fail_half_way(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


_NO_SPACE = """
import resource, shutil, signal, sys
from pathlib import Path
from enginewright.builder.publish import staging
from enginewright.runtime.errors import BuildError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with staging(Path(sys.argv[1]), "a") as folder:
        if len(sys.argv) > 2:
            shutil.copyfile(sys.argv[2], folder / "weights.bin")
        (folder / "weights.bin").write_bytes(bytes(8192))
except BuildError as error:
    print(error)
"""


@pytest.mark.parametrize("copied", [False, True])
def test_no_space_left_is_a_clear_error(tmp_path: Path, copied: bool):
    source, output = tmp_path / "source", tmp_path / "output"
    source.write_bytes(bytes(8192))
    arguments = [str(output), *([str(source)] if copied else [])]
    ran = subprocess.run(
        [sys.executable, "-c", _NO_SPACE, *arguments], capture_output=True, text=True, check=True
    )
    assert "no space left" in ran.stdout
    assert str(output) in ran.stdout
    assert str(source) not in ran.stdout
    assert list(output.iterdir()) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from enginewright.builder.publish import staging
with staging(Path(sys.argv[1]), "a") as folder:
    (folder / "weights.bin").write_bytes(bytes(8192))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_build_shows_nothing_and_the_next_one_cleans_up(tmp_path):
    ran = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert ran.returncode == -9
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    with staging(tmp_path, "a") as folder:
        _fill(folder, "new")
        publish(folder, tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(BuildError, match="cannot write"), staging(tmp_path / "sub", "a"):
        pass
