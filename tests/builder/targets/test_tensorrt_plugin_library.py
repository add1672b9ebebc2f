"""The attention plugin in C++: where TensorRT's headers are given, it is compiled and embedded.

No engine runs here: that needs a GPU. The plugin's enqueue is called as TensorRT calls it, with a
library that stands in for the driver's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
from collections.abc import Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from enginewright.builder.targets import operators
from enginewright.builder.targets.tensorrt import plugin_library
from enginewright.builder.targets.tensorrt.job import Job, Profile
from enginewright.builder.targets.tensorrt.library import find_library
from enginewright.builder.targets.tensorrt.plugin_library import (
    CUDA_INCLUDE,
    TENSORRT_INCLUDE,
    compile_plugin,
    find_headers,
)
from enginewright.builder.targets.tensorrt.process import compile_job
from enginewright.plugins.attention.cuda import launch
from enginewright.plugins.attention.cuda.config import KERNELS, KernelConfig
from enginewright.plugins.attention.cuda.kernel_set import KernelEntry, KernelSet, abi_digest
from enginewright.plugins.attention.tensorrt import Fields
from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.errors import BuildError

PROGRAMS = Path(__file__).parents[2] / "plugins" / "embedded"
CAPABILITIES = ("8.6", "12.0")
CODE_BYTES = 40_000
FIELDS = Fields(8, 4, 0.125, 0, 0.0, 64, 0, 1, 0, 0, 32)
WITH_ALL = replace(FIELDS, softcap=30.0, window=100, interleaved=1, has_sinks=1, quantized=1)
CONFIG = FIELDS.config("float16", "same", 64)

needs_headers = pytest.mark.skipif(
    not os.environ.get(TENSORRT_INCLUDE) or operators.find_compiler() is None,
    reason=f"needs a C++ compiler, and TensorRT's C++ headers in {TENSORRT_INCLUDE}",
)


def kernel_set(folder: Path, configs: Sequence[KernelConfig]) -> KernelSet:
    """A set whose code is no code: nothing here runs it."""
    entries = []
    for config in configs:
        for kernel in KERNELS:
            for capability in CAPABILITIES:
                file = f"{kernel}-{config.key}-{capability}.cubin"
                code = hashlib.shake_128(file.encode()).digest(CODE_BYTES)
                (folder / file).write_bytes(code)
                entries.append(
                    KernelEntry(
                        kernel=kernel,
                        config=config,
                        capability=capability,
                        file=file,
                        sha256=hashlib.sha256(code).hexdigest(),
                        symbol=f"{kernel}_{len(launch.ARGUMENTS[kernel]) + 2}",
                        num_warps=4,
                        shared_bytes=64 << 10,
                        registers=255,
                        spill_bytes=0,
                        hidden_pointers=2,
                    )
                )
    return KernelSet(folder, abi_digest(), "none", tuple(entries))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> KernelSet:
    configs = [CONFIG, WITH_ALL.config("bfloat16", "fp8", 64)]
    return kernel_set(tmp_path_factory.mktemp("kernels"), configs)


@pytest.fixture
def library(kernels: KernelSet) -> Path:
    headers = find_headers()
    assert headers is not None
    return compile_plugin(kernels, headers)


def tensorrt_build() -> ModuleType:
    """The module that makes the graph of one node."""
    path = PROGRAMS.parent / "tensorrt_build.py"
    spec = importlib.util.spec_from_file_location("tensorrt_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job(folder: Path, library: Path | None, **changes: Any) -> Job:
    case = {
        "io": "FLOAT16",
        "cache": "FLOAT16",
        "head_dim": 64,
        "rotary_dim": 64,
        "window": 0,
        "softcap": 0.0,
        "has_sinks": 0,
        "abi_version": 1,
    }
    graph = folder / "model.onnx"
    graph.write_bytes(tensorrt_build().model(case | changes))
    width, pool = 8 * 64, (4, 32, 64)
    shapes = {
        "q": ((1, 1, width), (2, 1, width), (8, 512, width)),
        "k": ((1, 1, width // 2), (2, 1, width // 2), (8, 512, width // 2)),
        "v": ((1, 1, width // 2), (2, 1, width // 2), (8, 512, width // 2)),
        "k_cache.0": ((1, *pool), (64, *pool), (4096, *pool)),
        "v_cache.0": ((1, *pool), (64, *pool), (4096, *pool)),
        "block_table": ((1, 1), (2, 4), (8, 64)),
        "past_lengths": ((1,), (2,), (8,)),
        "new_lengths": ((1,), (2,), (8,)),
    }
    return Job(
        library="tensorrt_rtx",
        graph=str(graph),
        weights="",
        engine=str(folder / "model.engine"),
        initializers=(),
        profiles=(Profile("decode", shapes),),
        capabilities=("SM86", "SM120"),
        plugin=True,
        plugin_library=None if library is None else str(library),
    )


@needs_headers
def test_the_engine_grows_by_the_library(tmp_path, library):
    pytest.importorskip("tensorrt_rtx")
    found = find_library("tensorrt_rtx")
    without = compile_job(job(tmp_path, None), found, lambda line: None)
    embedded = compile_job(job(tmp_path, library), found, lambda line: None)
    size = library.stat().st_size
    assert size > 16 * CODE_BYTES, "all kernels are in it"
    assert size <= embedded.engine_bytes - without.engine_bytes < size + 4096
    assert library.read_bytes() in Path(tmp_path, "model.engine").read_bytes()
    assert embedded.tensors == without.tensors


@needs_headers
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"softcap": 5.0}, "no kernels were embedded for such an attention"),
        ({"abi_version": 2}, "abi_version 2, this plugin has 1"),
    ],
)
def test_what_the_library_does_not_cover_fails_the_build(tmp_path, library, changes, said):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BuildError, match=f"EnginewrightCachedAttention: {said}"):
        compile_job(job(tmp_path, library, **changes), find_library("tensorrt_rtx"), print)


@needs_headers
def test_a_library_that_does_not_load_fails_the_build(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF")
    with pytest.raises(BuildError, match=r"the plugin cannot be loaded: .*broken\.so"):
        compile_job(job(tmp_path, broken), find_library("tensorrt_rtx"), print)


@needs_headers
def test_it_is_compiled_once_and_known_to_the_runtime(monkeypatch, kernels, library):
    headers = find_headers()
    assert headers is not None
    folder = cache_folder()
    assert folder is not None
    assert (folder / "native" / sha256_file(library)).is_file()
    monkeypatch.setattr(plugin_library, "_compile", None)
    assert compile_plugin(kernels, headers) == library
    monkeypatch.undo()
    fewer = replace(kernels, entries=kernels.entries[:8])
    assert compile_plugin(fewer, headers).stat().st_size < library.stat().st_size - 7 * CODE_BYTES


@needs_headers
def test_its_bytes_depend_on_what_it_is_made_of_alone(monkeypatch, tmp_path, kernels, library):
    headers = find_headers()
    assert headers is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    again = compile_plugin(kernels, headers)
    assert again.is_relative_to(tmp_path)
    assert again.read_bytes() == library.read_bytes()


@needs_headers
def test_it_exports_what_tensorrt_asks_for_and_needs_the_c_library_alone(library):
    def told(*command: str) -> str:
        done = subprocess.run([*command, str(library)], capture_output=True, text=True, check=True)
        return done.stdout

    exported = {line.split()[-1] for line in told("nm", "-D", "--defined-only").splitlines()}
    assert exported == {"getCreators", "setLoggerFinder"}
    needed = [line for line in told("readelf", "-d").splitlines() if "NEEDED" in line]
    assert not [line for line in needed if "nvinfer" in line or "cuda" in line]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    headers = find_headers()
    assert headers is not None
    compiler = operators.find_compiler()
    assert compiler is not None
    flags = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror"]
    recorder = [str(PROGRAMS / "recorder.cpp"), "-shared", "-fPIC", "-o", "libcuda.so.1"]
    include = ["-isystem", str(headers.tensorrt), "-isystem", str(headers.cuda)]
    program = [str(PROGRAMS / "enqueue.cpp"), *include, "-o", "enqueue", "-ldl"]
    for command in (recorder, program):
        subprocess.run([*flags, *command], cwd=folder, check=True)
    return folder


def enqueued(
    programs: Path, library: Path, given: Fields, types: tuple[str, str], fail: str = ""
) -> list[str]:
    """What a step of 2 rows, 1 token, and 40 blocks, prints."""
    names = [field.name for field in fields(given)]
    values = [f"{name}={value}" for name, value in zip(names, astuple(given), strict=True)]
    environment = {"LD_LIBRARY_PATH": str(programs), "FAKE_DEVICE": "0", "FAKE_FAIL": fail}
    done = subprocess.run(
        [str(programs / "enqueue"), str(library), *types, "64", "2", "1", "40", *values],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()


@needs_headers
@pytest.mark.parametrize(
    ("given", "types", "cache"),
    [(FIELDS, ("float16", "float16"), "same"), (WITH_ALL, ("bfloat16", "fp8"), "fp8")],
)
def test_enqueue_launches_what_the_plugin_in_python_launches(
    programs, library, given, types, cache
):
    said = enqueued(programs, library, given, types)
    config = given.config(types[0], cache, 64)
    pointers = {name: 0x1000 * at for at, name in enumerate(given.inputs, 1)}
    pointers |= {"out": 0x100000, "workspace": 0x200000}
    planned = launch.launches(config, "8.6", launch.Shape(2, 1, 40), given.scalars, pointers)
    launched = [line.split() for line in said if line.startswith("launch")]
    assert [line[2:5] for line in launched] == [list(map(str, each.grid)) for each in planned]
    for line, each in zip(launched, planned, strict=True):
        words = [int(word, 16) for word in line[11:]]
        assert line[1].startswith(each.kernel)
        for word, argument in zip(words, each.arguments, strict=False):
            if argument.kind != "float32":
                assert word == (argument.value or 0), argument.name
    assert "alias -1 3 4" in said
    assert "legal 1" in said
    assert "configured 0" in said
    assert f"workspace {launch.workspace_bytes(config, 2)}" in said
    assert "status 0" in said
    serialized = dict(line[6:].split("=") for line in said if line.startswith("field"))
    assert {name: float(value) for name, value in serialized.items()} == {
        field.name: float(getattr(given, field.name)) for field in fields(given)
    }
    loads = [line.partition(" ")[2] for line in said if line.startswith("load")]
    unloads = [line.partition(" ")[2] for line in said if line.startswith("unload")]
    assert len(loads) == len(planned)
    assert sorted(loads) == sorted(unloads)


@needs_headers
def test_a_launch_that_fails_goes_to_the_logger(programs, library):
    said = enqueued(programs, library, FIELDS, ("float16", "float16"), fail="cuLaunchKernel")
    error = "cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED (719)"
    assert f"log 1 EnginewrightCachedAttention: {error}" in said
    assert "status -1" in said


@needs_headers
def test_a_cache_of_another_type_than_the_queries_is_not_legal(programs, library):
    assert "legal 0" in enqueued(programs, library, FIELDS, ("float16", "int8"))
    assert "legal 0" in enqueued(programs, library, FIELDS, ("float32", "float32"))


@needs_headers
def test_a_node_that_lacks_a_field_is_refused(programs, library):
    said = enqueued(programs, library, replace(FIELDS, window=1.5), ("float16", "float16"))
    assert said == ["log 1 EnginewrightCachedAttention: the type of window is wrong"]


def test_without_headers_there_is_no_library(monkeypatch):
    monkeypatch.delenv(TENSORRT_INCLUDE, raising=False)
    assert find_headers() is None


def test_a_folder_without_headers_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(TENSORRT_INCLUDE, str(tmp_path))
    with pytest.raises(BuildError, match=rf"{TENSORRT_INCLUDE}=.*no NvInferRuntime\.h there"):
        find_headers()


def test_cudas_headers_are_found_or_asked_for(monkeypatch, tmp_path):
    (tmp_path / "NvInferRuntime.h").touch()
    monkeypatch.setenv(TENSORRT_INCLUDE, str(tmp_path))
    monkeypatch.setenv(CUDA_INCLUDE, str(tmp_path))
    with pytest.raises(BuildError, match=rf"{CUDA_INCLUDE}=.*no cuda_runtime_api\.h there"):
        find_headers()
    (tmp_path / "cuda_runtime_api.h").touch()
    assert find_headers() == plugin_library.Headers(tmp_path, tmp_path)
    monkeypatch.delenv(CUDA_INCLUDE)
    toolkit = tmp_path / "toolkit"
    for folder in ("bin", "include"):
        (toolkit / folder).mkdir(parents=True)
    (toolkit / "bin" / "nvcc").touch(mode=0o755)
    (toolkit / "include" / "cuda_runtime_api.h").touch()
    monkeypatch.setenv("PATH", str(toolkit / "bin"))
    assert find_headers() == plugin_library.Headers(tmp_path, toolkit / "include")


def test_without_a_compiler_the_build_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    headers = plugin_library.Headers(tmp_path, tmp_path)
    with pytest.raises(BuildError, match=f"{TENSORRT_INCLUDE} is set, and there is no C"):
        compile_plugin(kernel_set(tmp_path, [CONFIG]), headers)
