"""Hashes of source files: remembered while the file is the same, and only then."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from enginewright.builder.source import hashes
from enginewright.builder.source.hashes import cached_sha256, source_digest


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "file"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file whose content is hashed."""
    seen: list[Path] = []
    real = hashes.sha256_file

    def counted(path: Path) -> str:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(hashes, "sha256_file", counted)
    return seen


def test_a_file_is_read_once_until_it_changes(file: Path, reads: list[Path]) -> None:
    one = hashlib.sha256(b"one").hexdigest()
    assert [cached_sha256(file), cached_sha256(file)] == [one, one]
    assert reads == [file]
    file.write_bytes(b"longer")
    assert cached_sha256(file) == hashlib.sha256(b"longer").hexdigest()
    assert len(reads) == 2


@pytest.mark.parametrize("how", ["mtime", "ctime", "inode"])
def test_the_same_size_is_not_the_same_file(file: Path, reads: list[Path], how: str) -> None:
    before = file.stat()
    cached_sha256(file)
    if how == "inode":
        other = file.with_name("other")
        other.write_bytes(b"two")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(file)
    else:
        file.write_bytes(b"two")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + (how == "mtime")))
    assert cached_sha256(file) == hashlib.sha256(b"two").hexdigest()
    assert len(reads) == 2


def test_a_damaged_record_is_ignored(file: Path, reads: list[Path], tmp_path: Path) -> None:
    expected = cached_sha256(file)
    (record,) = (tmp_path / "cache/enginewright/hashes").iterdir()
    for text in ("{", "[]", "{}"):
        record.write_text(text)
        assert cached_sha256(file) == expected
    assert len(reads) == 4


def test_without_a_cache_every_file_is_read(file: Path, reads: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert cached_sha256(file) == cached_sha256(file)
    assert len(reads) == 2


def test_the_digest_is_of_names_and_contents_in_no_order(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"two")
    digest = source_digest({"a": file, "b": other})
    assert digest == source_digest({"b": other, "a": file})
    assert digest != source_digest({"b": file, "a": other})
    assert digest != source_digest({"a": file})
