"""A folder of compiled kernels and its index, ``kernels.json``. Torch- and triton-free.

| launch of a kernel | what the entry says                                                         |
|--------------------|-----------------------------------------------------------------------------|
| grid               | from launch.launches                                                        |
| block              | (32 * num_warps, 1, 1)                                                      |
| dynamic shared     | shared_bytes (above 48 KiB the function's attribute has to be raised first) |
| parameters         | the launch's arguments, then hidden_pointers null pointers                  |
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from enginewright.plugins.attention.contract import ABI_VERSION
from enginewright.plugins.attention.cuda import launch
from enginewright.plugins.attention.cuda.config import (
    CAPABILITIES,
    KERNELS,
    KernelConfig,
    UnsupportedAttentionError,
    tile,
)

INDEX = "kernels.json"


class KernelSetError(ValueError):
    """A set of kernels is damaged, of another ABI, or lacks a kernel."""


@dataclass(frozen=True)
class KernelEntry:
    """One cubin. ``file`` is relative to the index; registers and spill_bytes are of one thread."""

    kernel: str
    config: KernelConfig
    capability: str
    file: str
    sha256: str
    symbol: str
    num_warps: int
    shared_bytes: int
    registers: int
    spill_bytes: int
    hidden_pointers: int


@dataclass(frozen=True)
class KernelSet:
    """The kernels of an engine. ``abi``: abi_digest() of what compiled them; ``compiler``: its
    name and version."""

    folder: Path
    abi: str
    compiler: str
    entries: tuple[KernelEntry, ...]

    @classmethod
    def read(cls, path: Path) -> KernelSet:
        """From an index or its folder. Raises KernelSetError where it is missing, damaged, or for
        another version of these modules. Cubins are read, and their digests checked, by ``cubin``.
        """
        index = path / INDEX if path.is_dir() else path
        try:
            data = json.loads(index.read_text("utf-8"))
        except OSError as error:
            raise KernelSetError(f"{index}: {error.strerror}; build the artifact anew") from error
        except ValueError as error:
            raise KernelSetError(f"{index}: no JSON ({error}); build the artifact anew") from error
        try:
            entries = tuple(_entry(entry, index) for entry in data["kernels"])
            found = cls(index.parent, str(data["abi"]), str(data["compiler"]), entries)
        except (KeyError, TypeError, UnsupportedAttentionError) as error:
            message = f"{index}: damaged index ({error!r}); build the artifact anew"
            raise KernelSetError(message) from error
        if found.abi != abi_digest():
            raise KernelSetError(
                f"{index}: kernels of ABI {found.abi}, this version of enginewright launches "
                f"{abi_digest()}; build the artifact anew with this version"
            )
        return found

    def write(self) -> Path:
        """Write the index into the folder, beside its cubins; its path."""
        index = self.folder / INDEX
        kernels = [asdict(entry) for entry in self.entries]
        data = {"abi": self.abi, "compiler": self.compiler, "kernels": kernels}
        index.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
        return index

    @property
    def files(self) -> tuple[str, ...]:
        """The index and every cubin, relative to the folder, each once."""
        return (INDEX, *dict.fromkeys(entry.file for entry in self.entries))

    @property
    def capabilities(self) -> tuple[str, ...]:
        held = {entry.capability for entry in self.entries}
        return tuple(name for name in CAPABILITIES if name in held)

    def find(self, config: KernelConfig, kernel: str, capability: str) -> KernelEntry:
        """Raises KernelSetError, naming what there is. Cubins run on their own capability only."""
        for entry in self.entries:
            if (entry.config, entry.kernel, entry.capability) == (config, kernel, capability):
                return entry
        if capability not in self.capabilities:
            raise KernelSetError(
                f"no attention kernels for compute capability {capability}: the engine has those "
                f"for {', '.join(self.capabilities)}; build it with `capabilities: [{capability}]`"
            )
        raise KernelSetError(f"no attention kernel {kernel!r} for {config}; build the engine anew")

    def cubin(self, entry: KernelEntry) -> bytes:
        """The code of an entry. Raises KernelSetError where it is missing or changed."""
        path = self.folder / entry.file
        try:
            code = path.read_bytes()
        except OSError as error:
            raise KernelSetError(f"{path}: {error.strerror}; build the artifact anew") from error
        if hashlib.sha256(code).hexdigest() != entry.sha256:
            raise KernelSetError(f"{path}: changed since it was compiled; build the artifact anew")
        return code


def abi_digest() -> str:
    """Of what compiled kernels and the code that launches them have to agree in."""
    tiles = {
        f"{kernel} {dim} {group} {capability}": asdict(tile(config, kernel, capability))
        for dim in (32, 64, 96, 128, 192, 256)
        for group in (1, 16, 32, 64)
        for capability in CAPABILITIES
        for kernel in KERNELS
        for config in [KernelConfig("float16", group, 1, dim, 32)]
    }
    limits = [launch.DECODE_PROGRAMS, launch.MIN_SPLIT_TOKENS, launch.MAX_SPLITS, launch.NO_WINDOW]
    config_fields = [field.name for field in fields(KernelConfig)]
    told = [ABI_VERSION, launch.ARGUMENTS, launch.FLOATS, tiles, limits, config_fields]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _entry(data: dict[str, Any], index: Path) -> KernelEntry:
    entry = KernelEntry(**{**data, "config": KernelConfig.from_data(data["config"])})
    for field in fields(KernelEntry):
        wanted = {"str": str, "int": int}.get(str(field.type))
        if wanted and type(getattr(entry, field.name)) is not wanted:
            raise TypeError(f"{field.name} is {getattr(entry, field.name)!r}")
    if PurePosixPath(entry.file).name != entry.file:
        raise KernelSetError(f"{index}: {entry.file!r} is no file beside the index")
    return entry
