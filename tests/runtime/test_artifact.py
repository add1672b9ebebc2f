"""Opening an artifact: what is refused, by name, and what is hashed when."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime.artifact import artifact as artifact_module
from enginewright.runtime.artifact.artifact import Artifact, sha256_file
from enginewright.runtime.artifact.integrity import FileState, VerifiedFiles, cache_folder
from enginewright.runtime.artifact.manifest import NvidiaEntry, PluginEntry, TuningEntry, seal
from enginewright.runtime.doctor.artifact_checks import artifact_findings
from enginewright.runtime.errors import (
    ArtifactError,
    ArtifactNotFoundError,
    EnginewrightError,
    IntegrityError,
    SchemaVersionError,
    TargetError,
)

WEIGHTS = "engine/weights.bin"


@pytest.fixture
def folder(tiny_artifact: Path, tmp_path: Path) -> Path:
    """An artifact to spoil."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "spoilt"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed; files above 100 kB count as weights here."""
    names: list[str] = []

    def counting(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(artifact_module, "sha256_file", counting)
    monkeypatch.setattr(artifact_module, "SMALL_FILE", 100_000)
    return names


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(seal(data), "utf-8")


def test_every_altered_value_of_the_manifest_is_found(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text("utf-8")
    for place in range(0, len(text), 7):
        changed = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        path.write_text(changed, "utf-8")
        with pytest.raises(ArtifactError):
            Artifact.open(folder)


def test_a_good_artifact_opens(folder: Path) -> None:
    artifact = Artifact.open(str(folder))
    assert artifact.path == folder
    assert artifact.engine().target == artifact.engine("cpu").target == "cpu"
    assert artifact.file("tokenizer.json") == folder / "tokenizer.json"
    assert artifact.holds("chat_template.jinja")
    assert not artifact.holds("generation_config.json")


@pytest.mark.parametrize(
    "name", ["engine/model.onnx", WEIGHTS, "tokenizer.json", "chat_template.jinja"]
)
def test_one_flipped_byte_is_refused_by_name(folder: Path, name: str) -> None:
    flip_byte(folder / name)
    with pytest.raises(IntegrityError, match=rf"{name}: SHA-256 .* altered; copy or build"):
        Artifact.open(folder)


def test_a_truncated_file_is_refused_by_name(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 1000)
    with pytest.raises(IntegrityError, match=rf"{WEIGHTS}: 1000 bytes found, \d+ .* truncated"):
        Artifact.open(folder, verify="never")


def test_a_longer_file_is_refused(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(IntegrityError, match=rf"{WEIGHTS}: .* altered"):
        Artifact.open(folder, verify="never")


def test_a_missing_file_is_refused_by_name(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(IntegrityError, match=r"tokenizer\.json: the file is missing"):
        Artifact.open(folder)


def test_a_folder_in_a_files_place_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    with pytest.raises(IntegrityError, match=r"tokenizer\.json: is not a file"):
        Artifact.open(folder)


@pytest.mark.parametrize("linked", [WEIGHTS, "engine"])
def test_a_file_that_lies_elsewhere_is_refused(folder: Path, tmp_path: Path, linked: str) -> None:
    elsewhere = (folder / linked).rename(tmp_path / "elsewhere")
    (folder / linked).symlink_to(elsewhere)
    with pytest.raises(IntegrityError, match=f"{linked}: is a symbolic link"):
        Artifact.open(folder)


def test_a_file_that_the_manifest_does_not_list_is_never_read(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{}", "utf-8")
    artifact = Artifact.open(folder)
    with pytest.raises(IntegrityError, match=r"lists no file 'generation_config\.json'"):
        artifact.file("generation_config.json")


def test_evidence_beside_the_files_does_not_matter(folder: Path) -> None:
    (folder / "evidence").mkdir()
    (folder / "evidence" / "timings.json").write_text("{}", "utf-8")
    Artifact.open(folder, verify="always")


def test_weights_are_hashed_once_on_a_machine(folder: Path, hashed: list[str]) -> None:
    Artifact.open(folder)
    assert "weights.bin" in hashed
    hashed.clear()
    Artifact.open(folder)
    assert "weights.bin" not in hashed
    assert "tokenizer.json" in hashed, "small files are hashed at every load"
    Artifact.open(folder, verify="always")
    assert "weights.bin" in hashed


def test_weights_that_changed_are_hashed_again(folder: Path, hashed: list[str]) -> None:
    Artifact.open(folder)
    flip_byte(folder / WEIGHTS)
    with pytest.raises(IntegrityError, match=WEIGHTS):
        Artifact.open(folder)


def test_a_replaced_file_with_the_old_time_is_hashed_again(folder: Path, hashed: list[str]) -> None:
    Artifact.open(folder)
    weights = folder / WEIGHTS
    before = weights.stat()
    spoilt = folder / "spoilt"
    shutil.copy(weights, spoilt)
    flip_byte(spoilt)
    os.utime(spoilt, ns=(before.st_atime_ns, before.st_mtime_ns))
    spoilt.replace(weights)
    with pytest.raises(IntegrityError, match=WEIGHTS):
        Artifact.open(folder)


def test_a_file_written_in_place_with_the_old_time_is_hashed_again(
    folder: Path, hashed: list[str]
) -> None:
    Artifact.open(folder)
    before = (folder / WEIGHTS).stat()
    flip_byte(folder / WEIGHTS)
    os.utime(folder / WEIGHTS, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (folder / WEIGHTS).stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    with pytest.raises(IntegrityError, match=WEIGHTS):
        Artifact.open(folder)


def test_never_trusts_weights_and_nothing_else(folder: Path, hashed: list[str]) -> None:
    flip_byte(folder / WEIGHTS)
    Artifact.open(folder, verify="never")
    assert "weights.bin" not in hashed
    flip_byte(folder / "tokenizer.json")
    with pytest.raises(IntegrityError, match="tokenizer"):
        Artifact.open(folder, verify="never")


def test_native_code_is_hashed_whatever_its_size(
    make_tiny: Callable[..., Path],
    manifest_writer: Callable[..., Any],
    hashed: list[str],
) -> None:
    folder = make_tiny()
    (folder / "engine" / "plugin.so").write_bytes(b"x" * 200_000)
    manifest_writer(folder, Artifact.open(folder).engine())
    hashed.clear()
    Artifact.open(folder, verify="never")
    assert "plugin.so" in hashed
    flip_byte(folder / "engine" / "plugin.so")
    with pytest.raises(IntegrityError, match=r"plugin\.so"):
        Artifact.open(folder, verify="never")


def test_an_unknown_way_to_verify_lists_the_legal_ones(folder: Path) -> None:
    with pytest.raises(EnginewrightError, match="'sometimes': legal values are 'always', 'cached'"):
        Artifact.open(folder, verify="sometimes")  # type: ignore[arg-type]


def test_what_is_no_artifact_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match="no such folder"):
        Artifact.open(tmp_path / "nowhere")
    with pytest.raises(ArtifactNotFoundError, match=r"holds no manifest\.json"):
        Artifact.open(tmp_path)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ArtifactNotFoundError, match=r"is a checkpoint.*enginewright build"):
        Artifact.open(tmp_path)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(ArtifactNotFoundError, match=r"is a GGUF file.*enginewright build"):
        Artifact.open(gguf)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"schema_version": 1}', "\udcff"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        Artifact.open(folder)


def test_another_schema_says_found_supported_and_what_to_do(folder: Path) -> None:
    edit_manifest(folder, lambda data: data.update(schema_version=99))
    wanted = "version 99 found, this runtime reads 1 to 4; rebuild"
    with pytest.raises(SchemaVersionError, match=wanted):
        Artifact.open(folder)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_what_an_older_version_wrote_opens(folder: Path, version: int) -> None:
    """A manifest of version 3 lacks the field that 4 added; those before, some more."""
    added = {1: ("cpu_kernels", "reproducible", "nvidia"), 2: ("cpu_kernels", "reproducible")}

    def age(data: dict[str, Any]) -> None:
        data["schema_version"] = version
        data["tuning"] = {"processor": "a processor", "threads": 2, "seconds": {"plain": {}}}
        for name in added.get(version, ("cpu_kernels",)):
            del data["engines"][0][name]

    edit_manifest(folder, age)
    manifest = Artifact.open(folder).manifest
    assert manifest.engines[0].cpu_kernels is None
    assert manifest.tuning == TuningEntry("a processor", 2, {"plain": {}}, {})


@pytest.mark.parametrize(
    ("kernels", "library", "timed", "reason"),
    [
        ("avx1", True, ["avx1"], "cpu_kernels 'avx1'; legal: portable, avx2, "),
        ("avx2", False, ["avx2"], "cpu_kernels 'avx2' and no library"),
        ("avx2", True, ["amx"], "cpu_kernels 'avx2', of which no times are there"),
        ("avx2", True, None, "cpu_kernels 'avx2', of which no times are there"),
        ("avx2", True, ["avx2", "amx"], None),
    ],
)
def test_kernels_that_no_build_chose_are_refused(
    folder: Path, kernels: str, library: bool, timed: list[str] | None, reason: str | None
) -> None:
    def choose(data: dict[str, Any]) -> None:
        (entry,) = data["engines"]
        entry["cpu_kernels"] = kernels
        entry["library"] = entry["model"] if library else None
        if timed is not None:
            times = {entry["plan"]: {name: {"decode": 1.0} for name in timed}}
            data["tuning"] = dataclasses.asdict(TuningEntry("a processor", 2, {}, times))

    edit_manifest(folder, choose)
    if reason is None:
        assert Artifact.open(folder).manifest.engines[0].cpu_kernels == kernels
    else:
        with pytest.raises(ArtifactError, match=reason):
            Artifact.open(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "engine/../../x", "", "a\\b"])
def test_a_name_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    def add(data: dict[str, Any]) -> None:
        data["files"][name] = {"size": 0, "sha256": "0"}

    edit_manifest(folder, add)
    with pytest.raises(ArtifactError, match="not a path inside the artifact"):
        Artifact.open(folder)


def test_an_engine_may_only_name_listed_files(folder: Path) -> None:
    edit_manifest(folder, lambda data: data["engines"][0].update(model="engine/other.onnx"))
    with pytest.raises(IntegrityError, match=r"lists no file 'engine/other\.onnx'"):
        Artifact.open(folder)


def _nvidia(plugins: int = 0, library: str = "tensorrt_rtx") -> dict[str, Any]:
    plugin = PluginEntry("Attention", "1", "enginewright", "abi", "engine/kernels.json")
    entry = NvidiaEntry("tensorrt_rtx", "1.7.1", ("8.6",), False, (), {}, (plugin,) * plugins, 1)
    return {**dataclasses.asdict(entry), "library": library}


@pytest.mark.parametrize(
    ("target", "nvidia", "reason"),
    [
        ("tensorrt_rtx", None, "no entry 'nvidia'"),
        ("cpu", _nvidia(), "entry 'nvidia', which is for GPUs"),
        ("tensorrt_rtx", _nvidia(library="other"), "library 'other'; .* has 'tensorrt_rtx'"),
        ("tensorrt_rtx", _nvidia(plugins=2), "calls 2 plugins"),
        ("tensorrt_rtx", _nvidia(plugins=1), r"kernels 'engine/kernels\.json'"),
    ],
)
def test_what_no_builder_writes_of_a_gpu_is_refused(
    folder: Path, target: str, nvidia: Any, reason: str
) -> None:
    edit_manifest(folder, lambda data: data["engines"][0].update(target=target, nvidia=nvidia))
    with pytest.raises(ArtifactError, match=reason):
        Artifact.open(folder)
    [finding] = artifact_findings(folder)[1]
    assert (finding.code, finding.status) == ("manifest_unreadable", "problem")


def test_another_target_lists_those_that_are_there(folder: Path) -> None:
    artifact = Artifact.open(folder)
    with pytest.raises(TargetError, match="no engine for target 'cuda'; this artifact holds: cpu"):
        artifact.engine("cuda")
    none = dataclasses.replace(
        artifact, manifest=dataclasses.replace(artifact.manifest, engines=())
    )
    with pytest.raises(TargetError, match="holds: none"):
        none.engine()


def test_the_folder_is_never_written(folder: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    Artifact.open(folder, verify="always")
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_the_cache_folder_is_private(tmp_path: Path) -> None:
    found = cache_folder()
    assert found == tmp_path / "xdg-cache" / "enginewright"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_a_cache_folder_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "xdg-cache" / "enginewright"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert cache_folder() is None


def test_a_relative_cache_path_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "enginewright"


def test_without_a_cache_nothing_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    state = FileState.of(path)
    nowhere = VerifiedFiles(None)
    nowhere.remember(state, "abc")
    assert not nowhere.knows(state, "abc")


def test_a_damaged_record_only_costs_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    state = FileState.of(path)
    verified = VerifiedFiles(tmp_path)
    verified.remember(state, "abc")
    assert verified.knows(state, "abc")
    assert not verified.knows(state, "abd"), "another hash is another content"
    (record,) = (tmp_path / "verified").iterdir()
    record.write_bytes(b"{")
    assert not verified.knows(state, "abc")
