"""An engine for NVIDIA GPUs is loaded, or refused with what is missing."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.artifact.manifest import EngineEntry, NvidiaEntry, PluginEntry
from enginewright.runtime.backends import open_engine
from enginewright.runtime.backends.tensorrt import _register_plugins, library
from enginewright.runtime.backends.tensorrt.jit_cache import JitCache, JitKey
from enginewright.runtime.cuda.driver import DeviceFacts
from enginewright.runtime.errors import ArtifactError, DeviceError, MissingDependencyError

KEY = JitKey("0" * 64, "GPU", "8.6", "13.0", "1.7.1.116")


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture
def artifact(make_tiny: Any, manifest_writer: Any) -> tuple[Artifact, EngineEntry]:
    """A tiny artifact whose engine says that TensorRT-RTX built it."""
    folder = make_tiny()
    nvidia = NvidiaEntry("tensorrt_rtx", "1.7.1.116", ("8.6",), False, (), {}, (), 1)
    entry = Artifact.open(folder).manifest.engines[0]
    entry = replace(entry, target="tensorrt_rtx", nvidia=nvidia)
    manifest_writer(folder, entry)
    return Artifact.open(folder), entry


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_the_error_says_so(artifact: tuple[Artifact, EngineEntry]) -> None:
    pytest.importorskip("cuda.bindings")
    with pytest.raises(DeviceError, match=r"no NVIDIA driver.*Install the NVIDIA driver") as found:
        open_engine(*artifact)
    assert found.value.code == "no_driver"


def test_without_cuda_bindings_the_error_says_so(
    artifact: tuple[Artifact, EngineEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.driver", None)
    with pytest.raises(MissingDependencyError, match="pip install 'cuda-bindings>=13'"):
        open_engine(*artifact)


@pytest.mark.parametrize("embedded", [True, False])
def test_a_plugin_that_the_engine_brings_is_not_registered(
    artifact: tuple[Artifact, EngineEntry], embedded: bool
) -> None:
    opened, entry = artifact
    assert entry.nvidia is not None
    used = PluginEntry("Attention", "1", "enginewright", "abi", "no-such.json", embedded)
    entry = replace(entry, nvidia=replace(entry.nvidia, plugins=(used,)))
    facts = DeviceFacts("GPU", "8.6", "13.0", 1, 1)
    reads_the_index = pytest.raises(ArtifactError, match=r"no-such\.json")
    with ExitStack() as owned, nullcontext() if embedded else reads_the_index:
        _register_plugins(opened, entry, facts, None, owned)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here"
)
def test_a_missing_library_is_answered_by_the_pip_command() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'enginewright\[tensorrt\]'"):
        library.import_library("tensorrt")


def test_the_library_refuses_a_file_that_is_no_engine(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    trt = library.import_library("tensorrt_rtx")
    path = tmp_path / "model.engine"
    path.write_bytes(b"this is no engine" * 100)
    with pytest.raises(DeviceError, match="refuses the engine") as found:
        library.load_engine(trt, path, library.Messages(trt), host_code=False)
    assert found.value.code == "engine_refused"


class Cache:
    """The library's runtime cache: it takes back what it gave."""

    def __init__(self) -> None:
        self.content, self.read = b"compiled", b""

    def serialize(self) -> bytes:
        return self.content

    def deserialize(self, content: bytes) -> bool:
        self.read = content
        return True


class Config:
    def __init__(self, cache: Cache) -> None:
        self.cache, self.used = cache, None

    def create_runtime_cache(self) -> Cache:
        return self.cache

    def set_runtime_cache(self, cache: Cache) -> None:
        self.used = cache


def test_what_was_compiled_is_found_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = Config(Cache()), Config(Cache())
    made = JitCache.attached([first, second], KEY)
    assert first.cache.read == b""
    assert first.used is second.used is first.cache, "contexts of both profiles share it"
    made.save()
    later, other = Config(Cache()), Config(Cache())
    JitCache.attached([later], KEY)
    assert later.cache.read == b"compiled"
    JitCache.attached([other], replace(KEY, cuda="13.1"))
    assert other.cache.read == b"", "another driver's"
    folder = cache_folder()
    assert folder is not None
    [file] = (folder / "tensorrt").iterdir()
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o077 == 0


def test_a_library_without_such_a_cache_has_none() -> None:
    JitCache.attached([object()], KEY).save()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = JitCache.attached([Config(Cache())], KEY)
    folder = cache_folder()
    assert folder is not None
    folder.chmod(0o500)
    made.save()
    assert not list(folder.iterdir())
