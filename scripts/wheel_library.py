"""Hatchling's hook: a wheel built where a C++ compiler is carries the library of CPU operators.

Such a wheel is for one platform; without a compiler the wheel holds the sources alone, for any.
HATCH_BUILD_NO_HOOKS=true asks for the latter. A compiler that fails gives such a wheel too, with a
warning, unless CXX names it: then there is no wheel. An editable install compiles nothing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_RECIPE = "plugins/enginewright/plugins/cpu_library.py"


class UnsuitableError(Exception):
    """Why the wheel carries no library."""


class CompilerError(UnsuitableError):
    """A compiler that does not compile our sources."""


class LibraryHook(BuildHookInterface[Any]):
    """Compiles the library into a scratch folder and has it packed from there."""

    _scratch: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        recipe = _load(Path(self.root) / _RECIPE)
        self._scratch = Path(tempfile.mkdtemp())
        try:
            tag = _compile(recipe, self._scratch)
        except Exception as reason:
            wanted = isinstance(reason, CompilerError) and os.environ.get("CXX")
            if wanted or not isinstance(reason, UnsuitableError):
                shutil.rmtree(self._scratch)
                raise
            self.app.display_warning(f"the wheel carries no prebuilt operators: {reason}")
            return
        names = (recipe.file_name(_platform()), recipe.record_name(_platform()))
        inside = "enginewright/plugins/prebuilt"
        build_data["force_include"] |= {str(self._scratch / n): f"{inside}/{n}" for n in names}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch)


def _compile(recipe: ModuleType, folder: Path) -> str:
    """Put library and record into the folder; the platform of the wheel's tag."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        raise UnsuitableError("they are compiled on Linux with the GNU C library only")
    try:
        compiler = recipe.find_compiler()
    except recipe.NoSuchCompilerError as error:
        raise CompilerError(str(error)) from error
    if compiler is None:
        raise UnsuitableError("there is no C++ compiler")
    version = _run([compiler, "--version"]).partition("\n")[0]
    library = folder / recipe.file_name(_platform())
    with tempfile.TemporaryDirectory() as scratch:
        commands = recipe.object_commands(compiler, Path(scratch))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(_run, commands.values()))
        # With the C++ library inside; a wheel may not lean on that of this machine.
        link = [compiler, *recipe.LINK_FLAGS, *recipe.STATIC, *commands, "-o", str(library)]
        try:
            _run(link)
        except CompilerError as reason:  # some systems have no static C++ library
            raise UnsuitableError(str(reason)) from reason
    recipe.write_record(folder, version, _platform())
    return _tag(library.read_bytes())


def _tag(library: bytes) -> str:
    """From the newest version of the C library that it asks for."""
    versions = [int(found) for found in re.findall(rb"\0GLIBC_2\.(\d+)(?=[.\0])", library)]
    if not versions:
        raise UnsuitableError("the library does not say which C library it needs")
    return f"manylinux_2_{max(versions)}_{platform.machine()}"


def _platform() -> str:
    return f"{sys.platform}-{platform.machine()}"


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError as error:
        raise CompilerError(f"{command[0]}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip()[-2000:]
        raise CompilerError(f"the C++ compiler failed ({' '.join(command)}): {said}") from error


def _load(path: Path) -> ModuleType:
    """A module of the package, by its file: the build's environment has no package of ours."""
    spec = importlib.util.spec_from_file_location("_cpu_library", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
