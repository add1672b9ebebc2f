"""The attention plugin in C++, compiled with an engine's kernels inside, to be embedded in it.

It is made where TensorRT's C++ headers are given, which no wheel brings; elsewhere the engine calls
the plugin in Python. A library is kept in the cache, known to this machine's runtime.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from enginewright.builder.cache import cached_file
from enginewright.builder.stage_inputs import flat
from enginewright.builder.targets import operators
from enginewright.plugins.attention.cuda import embed
from enginewright.plugins.attention.cuda.kernel_set import KernelSet
from enginewright.plugins.cpu_library import LINK_FLAGS, STATIC
from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.native_code import remember, this_platform
from enginewright.runtime.errors import BuildError

TENSORRT_INCLUDE = "ENGINEWRIGHT_TENSORRT_INCLUDE"
CUDA_INCLUDE = "ENGINEWRIGHT_CUDA_INCLUDE"
_TENSORRT_HEADER = "NvInferRuntime.h"
_VERSION_HEADER = "NvInferVersion.h"
_CUDA_HEADER = "cuda_runtime_api.h"
_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden")
_EXPORTS = "{ global: getCreators; setLoggerFinder; local: *; };\n"


@dataclass(frozen=True)
class Headers:
    """Folders with NvInferRuntime.h and with cuda_runtime_api.h."""

    tensorrt: Path
    cuda: Path

    def versions(self) -> dict[str, str]:
        """Digests of the headers that the plugin's interface to TensorRT is in."""
        names = (_TENSORRT_HEADER, _VERSION_HEADER)
        found = (self.tensorrt / name for name in names)
        return {path.name: sha256_file(path) for path in found if path.is_file()}


def find_headers() -> Headers | None:
    """The folders, TensorRT's from ENGINEWRIGHT_TENSORRT_INCLUDE; None where that is not set.

    CUDA's come from ENGINEWRIGHT_CUDA_INCLUDE, else from beside nvcc, else from Triton. Raises
    BuildError where headers are not where they are said to be, and on systems other than Linux.
    """
    asked = os.environ.get(TENSORRT_INCLUDE)
    if not asked:
        return None
    if platform.system() != "Linux":
        raise BuildError(
            f"{TENSORRT_INCLUDE} is set, and the plugin in C++ is built on Linux only: unset it, "
            f"and the engine calls the plugin in Python"
        )
    if not Path(asked, _TENSORRT_HEADER).is_file():
        raise BuildError(
            f"{TENSORRT_INCLUDE}={asked}: no {_TENSORRT_HEADER} there; name the folder of "
            f"TensorRT's C++ headers, or unset it, and the engine calls the plugin in Python"
        )
    return Headers(Path(asked), _cuda_include())


def compile_plugin(kernels: KernelSet, headers: Headers) -> Path:
    """The library, which holds every kernel of the set.

    Raises BuildError without a C++ compiler, CompilerError where it fails, KernelSetError where a
    cubin is missing or changed.
    """
    compiler = operators.find_compiler()
    if compiler is None:
        raise BuildError(
            f"{TENSORRT_INCLUDE} is set, and there is no C++ compiler: install one, name one in "
            f"CXX, or unset {TENSORRT_INCLUDE}, and the engine calls the plugin in Python"
        )
    table = embed.source(kernels)
    inputs = {
        "compiler": operators.compiler_version(compiler),
        "flags": " ".join([*_FLAGS, *LINK_FLAGS, *STATIC, _EXPORTS]),
        **flat("source", {name: sha256_file(embed.FOLDER / name) for name in embed.SOURCES}),
        "kernels": hashlib.sha256(table.encode()).hexdigest(),
        **flat("header", headers.versions()),
        "platform": this_platform(),
    }
    name = f"attention-plugin-{this_platform()}.so"
    made = cached_file(
        "tensorrt-plugin", inputs, name, lambda path: _compile(compiler, headers, table, path)
    )
    remember(sha256_file(made))
    return made


def _compile(compiler: str, headers: Headers, table: str, library: Path) -> None:
    # System folders: what compilers warn of in others' headers is not ours to mend.
    includes = [
        *("-I", str(embed.FOLDER)),
        *("-isystem", str(headers.tensorrt)),
        *("-isystem", str(headers.cuda)),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        generated, exports = Path(scratch, "table.cpp"), Path(scratch, "exports.map")
        generated.write_text(table, encoding="utf-8")
        exports.write_text(_EXPORTS, encoding="utf-8")
        objects = []
        for source in (embed.FOLDER / "plugin.cpp", generated):
            made = str(Path(scratch, f"{source.stem}.o"))
            command = [compiler, *_FLAGS, *includes, "-c", str(source), "-o", made]
            operators.run_compiler(command)
            objects.append(made)
        flags = (f"-Wl,--version-script={exports}", "-ldl")
        operators.link_library(compiler, flags, objects, library)


def _cuda_include() -> Path:
    for folder in _cuda_folders():
        if (folder / _CUDA_HEADER).is_file():
            return folder
    asked = os.environ.get(CUDA_INCLUDE)
    said = f"{CUDA_INCLUDE}={asked}: no {_CUDA_HEADER} there" if asked else f"no {_CUDA_HEADER}"
    raise BuildError(
        f"{said}; TensorRT's headers need those of CUDA: name their folder in {CUDA_INCLUDE} "
        f"(/usr/local/cuda/include, for example)"
    )


def _cuda_folders() -> Iterator[Path]:
    asked = os.environ.get(CUDA_INCLUDE)
    if asked:
        yield Path(asked)
        return
    nvcc = shutil.which("nvcc")
    if nvcc:
        yield Path(nvcc).resolve().parents[1] / "include"
    triton = importlib.util.find_spec("triton")
    for folder in (triton and triton.submodule_search_locations) or ():
        yield Path(folder, "backends", "nvidia", "include")
