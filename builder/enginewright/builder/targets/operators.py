"""The library of our own CPU operators, compiled once a machine and kept in the cache.

Its bytes depend on the sources, the compiler and the flags alone. What is compiled here is known to
this machine's runtime, which therefore loads it from any artifact (native_code.py).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from enginewright.builder.cache import cached_file, digest
from enginewright.plugins.block_linear import contract
from enginewright.runtime.artifact import sha256_file
from enginewright.runtime.errors import BuildError
from enginewright.runtime.native_code import remember, this_platform

_SOURCES = Path(contract.__file__).parent / "cpu"
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")
_LINK_FLAGS = ("-shared", "-s", "-static-libgcc", "-static-libstdc++", "-Wl,--build-id=none")
_X86 = ("x86_64", "AMD64")


@dataclass(frozen=True)
class _Unit:
    """A source file and the instruction sets that it alone may use."""

    source: str
    flags: tuple[str, ...] = ()


def compile_library() -> Path | None:
    """The library for this machine; None where it has no C++ compiler, or is no Linux.

    The environment variable CXX names a compiler. Raises BuildError where a compiler fails.
    """
    compiler = find_compiler()
    if compiler is None or platform.system() != "Linux":
        return None
    key = digest(
        {
            "compiler": compiler_version(compiler),
            "flags": [*_FLAGS, *_LINK_FLAGS],
            "sources": {path.name: sha256_file(path) for path in sorted(_SOURCES.iterdir())},
            "platform": this_platform(),
        }
    )
    name = f"operators-{this_platform()}.so"
    made = cached_file("operators", key, name, lambda path: _compile(compiler, path))
    remember(sha256_file(made))
    return made


def find_compiler() -> str | None:
    """The C++ compiler that CXX names, or the first known one on the PATH."""
    names = (os.environ.get("CXX"), *_COMPILERS)
    return next((path for name in names if name and (path := shutil.which(name))), None)


def compiler_version(compiler: str) -> str:
    """The first line that the compiler says of itself."""
    return _run([compiler, "--version"]).stdout.partition("\n")[0]


def _units() -> tuple[_Unit, ...]:
    common = (_Unit("operator.cpp"), _Unit("kernels_portable.cpp"))
    if platform.machine() not in _X86:
        return common
    return (*common, _Unit("kernels_avx2.cpp", ("-mavx2", "-mfma", "-mf16c")))


def _compile(compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for unit in _units():
            made = Path(scratch) / f"{unit.source}.o"
            source = str(_SOURCES / unit.source)
            _run([compiler, *_FLAGS, *unit.flags, "-c", source, "-o", str(made)])
            objects.append(str(made))
        _run([compiler, *_LINK_FLAGS, *objects, "-o", str(library)])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(
            f"the C++ compiler failed ({' '.join(command)}): {done.stderr.strip()[-2000:]}\n"
            f"set CXX to GCC 10 or Clang 12, or newer; without a C++ compiler on the PATH the "
            f"artifact is built without native operators"
        )
    return done
