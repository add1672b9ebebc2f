"""The library of our CPU operators: its sources, its commands, and the one that a wheel may carry.

Only Python's own library is imported: the build of a wheel loads this file alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PLUGINS = Path(__file__).parent
SOURCES = (
    _PLUGINS / "cpu",
    *(_PLUGINS / name / "cpu" for name in ("attention", "block_linear", "row_ops")),
)
"""What the operators share, and each of them."""
_COMPILERS = ("c++", "g++", "clang++")
LINK_FLAGS = ("-shared", "-s", "-Wl,--build-id=none")
STATIC = ("-static-libgcc", "-static-libstdc++")
PREBUILT = _PLUGINS / "prebuilt"
"""Where a wheel has the library and its record: the names of ``file_name`` and ``record_name``."""

_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")
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


class NoSuchCompilerError(Exception):
    """CXX names a program that is not there."""


@dataclass(frozen=True)
class Prebuilt:
    """The library of an installed wheel; ``inputs``: what it was made from."""

    path: Path
    sha256: str
    inputs: Mapping[str, str]

    @property
    def compiler(self) -> str:
        return self.inputs.get("compiler", "")


@dataclass(frozen=True)
class _Unit:
    """A source file and the instruction sets that it alone may use."""

    source: Path
    flags: tuple[str, ...] = ()


def find_compiler() -> str | None:
    """The C++ compiler that CXX names, or the first known one on the PATH.

    Raises NoSuchCompilerError.
    """
    asked = os.environ.get("CXX")
    if not asked:
        return next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    found = shutil.which(asked)
    if found is None:
        raise NoSuchCompilerError(
            f"CXX={asked}: no such program; name a C++ compiler, without arguments, or unset CXX"
        )
    return found


def file_name(for_platform: str) -> str:
    """The library's, such as ``operators-linux-x86_64.so``."""
    return f"operators-{for_platform}.so"


def record_name(for_platform: str) -> str:
    """Of the file that says what a wheel's library was made from."""
    return f"operators-{for_platform}.json"


def library_inputs(compiler: str, for_platform: str) -> dict[str, str]:
    """All that the library's bytes depend on; ``compiler``: what it says of its version."""
    return {
        "compiler": compiler,
        "flags": " ".join([*_FLAGS, *LINK_FLAGS, *STATIC, str(_INSTRUCTION_SETS)]),
        **{
            f"source {at}/{path.name}": _sha256(path)
            for at, folder in enumerate(SOURCES)
            for path in sorted(folder.iterdir())
        },
        "platform": for_platform,
    }


def object_commands(compiler: str, scratch: Path) -> dict[str, list[str]]:
    """The command for each object file, in the order in which they are to be linked."""
    # Paths of this machine must not reach the library's bytes.
    flags = (*_FLAGS, f"-ffile-prefix-map={_PLUGINS}=.", f"-I{SOURCES[0]}")
    commands = {}
    for at, unit in enumerate(_units()):
        made = str(scratch / f"{at}.o")
        commands[made] = [compiler, *flags, *unit.flags, "-c", str(unit.source), "-o", made]
    return commands


def prebuilt(for_platform: str) -> Prebuilt | None:
    """The library that came with the installed package; None if there is none, or it is damaged."""
    path = PREBUILT / file_name(for_platform)
    try:
        record = json.loads((PREBUILT / record_name(for_platform)).read_text("utf-8"))
        found = Prebuilt(path, record["sha256"], record["inputs"])
        return found if _sha256(path) == found.sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(folder: Path, compiler: str, for_platform: str) -> None:
    """Say beside a library what it was made from, as ``prebuilt`` reads it."""
    sha256 = _sha256(folder / file_name(for_platform))
    record = {"sha256": sha256, "inputs": library_inputs(compiler, for_platform)}
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    (folder / record_name(for_platform)).write_text(text, encoding="utf-8")


def _units() -> tuple[_Unit, ...]:
    """Every C++ file; one that is named after an instruction set is for that alone.

    Those for any processor come first: of a function of the C++ library that several hold, the
    linker takes the first.
    """
    found = []
    for folder in SOURCES:
        for source in sorted(folder.glob("*.cpp")):
            flags = _INSTRUCTION_SETS.get(source.stem.removeprefix("kernels_"))
            if flags is None:
                found.append(_Unit(source))
            elif platform.machine() in _X86:
                found.append(_Unit(source, flags))
    return tuple(sorted(found, key=lambda unit: len(unit.flags)))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
