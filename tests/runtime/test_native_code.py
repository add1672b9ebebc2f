"""Code of an artifact's own: libraries, cubins with their index, engines that bring code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enginewright.plugins import cpu_library
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry, NvidiaEntry, PluginEntry
from enginewright.runtime.artifact.native_code import (
    native_files,
    objection,
    remember,
    this_platform,
)
from enginewright.runtime.errors import IntegrityError

CUBINS = ("engine/kernels/decode.cubin", "engine/kernels/prefill.cubin")
INDEX = "engine/kernels/kernels.json"
PLUGIN = PluginEntry("EnginewrightCachedAttention", "1", "enginewright", "abi", INDEX)
NVIDIA = NvidiaEntry("tensorrt_rtx", "1.7.1.116", ("8.6",), False, (), {}, (PLUGIN,), 1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def make(make_tiny: Any, manifest_writer: Any) -> Any:
    """``make(nvidia)``: an artifact, reopened, and its entry, with kernels beside the engine."""

    def made(nvidia: NvidiaEntry) -> tuple[Artifact, EngineEntry]:
        folder = make_tiny()
        (folder / "engine/kernels").mkdir()
        for file in (*CUBINS, INDEX):
            (folder / file).write_text(file)
        entry = Artifact.open(folder).manifest.engines[0]
        files = (*entry.files, *CUBINS, INDEX)
        entry = replace(entry, target="tensorrt_rtx", files=files, nvidia=nvidia)
        manifest_writer(folder, entry)
        artifact = Artifact.open(folder)
        return artifact, artifact.manifest.engines[0]

    return made


def compiled_here(artifact: Artifact, *files: str) -> None:
    for file in files:
        remember(artifact.manifest.files[file].sha256)


def test_kernels_of_others_do_not_run_unless_allowed(make: Any) -> None:
    artifact, entry = make(NVIDIA)
    reason = objection(artifact, entry, None)
    assert reason is not None
    assert f"{CUBINS[0]} and 2 more files" in reason
    assert "--allow-native-code" in reason
    assert objection(artifact, entry, True) is None
    assert objection(artifact, entry, False) is not None


def test_kernels_that_were_compiled_here_run(make: Any) -> None:
    artifact, entry = make(NVIDIA)
    compiled_here(artifact, *CUBINS, INDEX)
    assert objection(artifact, entry, None) is None


@pytest.mark.parametrize("forged", [CUBINS[1], INDEX])
def test_one_file_of_others_is_enough_to_refuse(make: Any, forged: str) -> None:
    artifact, entry = make(NVIDIA)
    compiled_here(artifact, *({*CUBINS, INDEX} - {forged}))
    reason = objection(artifact, entry, None)
    assert reason is not None
    assert reason.startswith(f"{forged} was not compiled on this machine")


def test_an_engine_that_brings_code_is_code(make: Any) -> None:
    artifact, entry = make(replace(NVIDIA, plugins=(), host_code=True))
    assert entry.model in native_files(entry)
    compiled_here(artifact, *CUBINS)
    reason = objection(artifact, entry, None)
    assert reason is not None
    assert entry.model in reason


def test_an_engine_that_brings_code_is_for_one_platform(make: Any) -> None:
    artifact, entry = make(replace(NVIDIA, host_code=True))
    reason = objection(artifact, replace(entry, platform="plan9-mips"), True)
    assert reason is not None
    assert reason.startswith(f"{entry.model} is for plan9-mips, this machine is")
    assert objection(artifact, replace(entry, platform=this_platform()), True) is None


def test_an_engine_without_code_needs_no_trust(make: Any) -> None:
    artifact, entry = make(replace(NVIDIA, plugins=()))
    entry = replace(entry, files=(entry.model,))
    assert native_files(entry) == ()
    assert objection(artifact, entry, False) is None


def test_a_cubin_is_hashed_at_every_load(make: Any) -> None:
    artifact, _ = make(NVIDIA)
    path = artifact.path / CUBINS[0]
    path.write_text(CUBINS[0].replace("decode", "forged"))
    with pytest.raises(IntegrityError, match="altered"):
        Artifact.open(artifact.path, verify="never")


def test_a_library_that_the_installed_package_brings_runs(
    make_tiny: Any, manifest_writer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, name = make_tiny(), "engine/operators.so"
    (folder / name).write_text("operators")
    entry = Artifact.open(folder).manifest.engines[0]
    files = (*entry.files, name)
    changed = replace(entry, files=files, library=name, platform=this_platform())
    manifest_writer(folder, changed)
    artifact = Artifact.open(folder)
    monkeypatch.setattr(cpu_library, "PREBUILT", tmp_path)
    assert objection(artifact, changed, None) is not None
    for content, known in (("operators", True), ("others", False)):
        (tmp_path / cpu_library.file_name(this_platform())).write_text(content)
        cpu_library.write_record(tmp_path, "theirs 1.0", this_platform())
        assert (objection(artifact, changed, None) is None) is known
    assert objection(artifact, changed, False) is not None
