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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from enginewright.builder.cache import cached_file
from enginewright.plugins.block_linear import contract
from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.native_code import remember, this_platform
from enginewright.runtime.cores import available_cores
from enginewright.runtime.errors import BuildError

_PLUGINS = Path(contract.__file__).parent.parent
_SOURCES = (
    _PLUGINS / "cpu",
    *(_PLUGINS / name / "cpu" for name in ("attention", "block_linear", "row_ops")),
)
"""What the operators share, and each of them."""
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")
LINK_FLAGS = ("-shared", "-s", "-Wl,--build-id=none")
STATIC = ("-static-libgcc", "-static-libstdc++")
_X86 = ("x86_64", "AMD64")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_INSTRUCTION_SETS = {
    "avx2": _AVX2,
    "avx2vnni": (*_AVX2, "-mavxvnni"),
    "avx512": _AVX512,
    "avx512vnni": (*_AVX512, "-mavx512vnni"),
    "amx": (*_AVX512, "-mavx512vbmi", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}
"""By the end of a file's name, on x86-64."""


class CompilerError(BuildError):
    """A C++ compiler that does not compile our sources."""


@dataclass(frozen=True)
class _Unit:
    """A source file and the instruction sets that it alone may use."""

    source: Path
    flags: tuple[str, ...] = ()


def compile_library() -> Path | None:
    """The library for this machine; None where it has no C++ compiler, or is no Linux.

    The environment variable CXX names a compiler. Raises CompilerError where a compiler fails,
    BuildError where the one that CXX names is not there.
    """
    compiler = find_compiler()
    if compiler is None or platform.system() != "Linux":
        return None
    inputs = {
        "compiler": compiler_version(compiler),
        "flags": " ".join([*_FLAGS, *LINK_FLAGS, *STATIC, str(_INSTRUCTION_SETS)]),
        **{
            f"source {at}/{path.name}": sha256_file(path)
            for at, folder in enumerate(_SOURCES)
            for path in sorted(folder.iterdir())
        },
        "platform": this_platform(),
    }
    name = f"operators-{this_platform()}.so"
    made = cached_file("operators", inputs, name, lambda path: _compile(compiler, path))
    remember(sha256_file(made))
    return made


def find_compiler() -> str | None:
    """The C++ compiler that CXX names, or the first known one on the PATH."""
    asked = os.environ.get("CXX")
    if not asked:
        return next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    found = shutil.which(asked)
    if found is None:
        raise BuildError(
            f"CXX={asked}: no such program; name a C++ compiler, without arguments, or unset CXX"
        )
    return found


def compiler_version(compiler: str) -> str:
    """The first line that the compiler says of itself."""
    return run_compiler([compiler, "--version"]).stdout.partition("\n")[0]


def link_library(compiler: str, flags: tuple[str, ...], objects: list[str], library: Path) -> None:
    """Make a library, with the C++ library inside. Raises CompilerError."""
    rest = [*objects, *flags, "-o", str(library)]
    try:
        run_compiler([compiler, *LINK_FLAGS, *STATIC, *rest])
    except CompilerError:  # some systems have no static C++ library
        run_compiler([compiler, *LINK_FLAGS, *rest])


def run_compiler(command: list[str]) -> subprocess.CompletedProcess[str]:
    """What the command printed. Raises CompilerError, with the compiler's last lines."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError(
            f"the C++ compiler failed ({' '.join(command)}): {done.stderr.strip()[-2000:]}\n"
            f"set CXX to one that knows C++20 (GCC 12 and Clang 14 were tried)"
        )
    return done


def _units() -> tuple[_Unit, ...]:
    """Every C++ file; one that is named after an instruction set is for that alone.

    Those for any processor come first: of a function of the C++ library that several hold, the
    linker takes the first.
    """
    found = []
    for folder in _SOURCES:
        for source in sorted(folder.glob("*.cpp")):
            flags = _INSTRUCTION_SETS.get(source.stem.removeprefix("kernels_"))
            if flags is None:
                found.append(_Unit(source))
            elif platform.machine() in _X86:
                found.append(_Unit(source, flags))
    return tuple(sorted(found, key=lambda unit: len(unit.flags)))


def _compile(compiler: str, library: Path) -> None:
    # Paths of this machine must not reach the library's bytes.
    flags = (*_FLAGS, f"-ffile-prefix-map={_PLUGINS}=.", f"-I{_SOURCES[0]}")
    with tempfile.TemporaryDirectory() as scratch:

        def made(at: int, unit: _Unit) -> str:
            result = str(Path(scratch) / f"{at}.o")
            run_compiler([compiler, *flags, *unit.flags, "-c", str(unit.source), "-o", result])
            return result

        with ThreadPoolExecutor(available_cores()) as pool:
            objects = list(pool.map(made, *zip(*enumerate(_units()), strict=True)))
        link_library(compiler, (), objects, library)
