"""The library of our own CPU operators: the installed wheel's, or compiled here once and cached.

Its bytes depend on the sources, the compiler and the flags alone. What is compiled here is known to
this machine's runtime, which therefore loads it from any artifact (native_code.py).
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from enginewright.builder.cache import cached_file
from enginewright.plugins import cpu_library
from enginewright.plugins.cpu_library import LINK_FLAGS, STATIC
from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.native_code import remember, this_platform
from enginewright.runtime.cores import available_cores
from enginewright.runtime.errors import BuildError


class CompilerError(BuildError):
    """A C++ compiler that does not compile our sources."""


def compile_library() -> Path | None:
    """The library for this machine; None where it has no C++ compiler and the package brings none,
    or is no Linux.

    The environment variable CXX names a compiler, which then compiles whatever the package brings.
    Raises CompilerError where a compiler fails, BuildError where the one that CXX names is not
    there.
    """
    if platform.system() != "Linux":
        return None
    carried = carried_library()
    made = _compiled() if carried is None else carried.path
    if made is not None:
        remember(sha256_file(made))
    return made


def carried_library() -> cpu_library.Prebuilt | None:
    """What the installed wheel brings; None if it is not what these sources and flags would give,
    or CXX asks for another compiler."""
    found = cpu_library.prebuilt(this_platform())
    if found is None or os.environ.get("CXX"):
        return None
    same = found.inputs == cpu_library.library_inputs(found.compiler, this_platform())
    return found if same else None


def has_library() -> bool:
    """Whether the library is here, or something that could compile it."""
    return carried_library() is not None or find_compiler() is not None


def library_compiler() -> str | None:
    """What the compiler of ``compile_library``'s library says of itself."""
    carried = carried_library()
    if carried is not None:
        return carried.compiler
    compiler = find_compiler()
    return None if compiler is None else compiler_version(compiler)


def find_compiler() -> str | None:
    """The C++ compiler that CXX names, or the first known one on the PATH. Raises BuildError."""
    try:
        return cpu_library.find_compiler()
    except cpu_library.NoSuchCompilerError as error:
        raise BuildError(str(error)) from error


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


def _compiled() -> Path | None:
    compiler = find_compiler()
    if compiler is None:
        return None
    inputs = cpu_library.library_inputs(compiler_version(compiler), this_platform())
    name = cpu_library.file_name(this_platform())
    return cached_file("operators", inputs, name, lambda path: _compile(compiler, path))


def _compile(compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        commands = cpu_library.object_commands(compiler, Path(scratch))
        with ThreadPoolExecutor(available_cores()) as pool:
            list(pool.map(run_compiler, commands.values()))
        link_library(compiler, (), list(commands), library)
