"""A set of kernels as C++ source: what table.h declares. Torch- and triton-free.

The code of a cubin is an array of 64-bit words, little-endian as on every machine with such a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from enginewright.plugins.attention.contract import ABI_VERSION
from enginewright.plugins.attention.cuda import launch
from enginewright.plugins.attention.cuda.config import KERNELS, KernelConfig, tile
from enginewright.plugins.attention.cuda.kernel_set import KernelEntry, KernelSet

SOURCES = ("plugin.cpp", "launcher.h", "plan.h", "table.h")
"""The plugin in C++, beside this module; compiled together with what ``source`` gives."""

FOLDER = Path(__file__).parent
_WORDS_A_LINE = 5


def source(kernels: KernelSet) -> str:
    """The C++ source. Raises KernelSetError where a cubin is missing or changed."""
    files = list(dict.fromkeys(entry.file for entry in kernels.entries))
    codes = {entry.file: kernels.cubin(entry) for entry in kernels.entries}
    arrays = (_array(f"kCode{at}", codes[file]) for at, file in enumerate(files))
    entries = (
        _entry(entry, f"kCode{files.index(entry.file)}", len(codes[entry.file]))
        for entry in kernels.entries
    )
    return "\n".join(
        [
            "// Made by embed.py from the kernels of one engine.",
            '#include "table.h"',
            "namespace enginewright::attention {",
            "namespace {",
            *arrays,
            "}  // namespace",
            *_constants(),
            "const Entry kEntries[] = {",
            *entries,
            "};",
            f"const size_t kEntryCount = {len(kernels.entries)};",
            "}  // namespace enginewright::attention",
            "",
        ]
    )


def _array(name: str, code: bytes) -> str:
    padded = code + bytes(-len(code) % 8)
    words = [int.from_bytes(padded[at : at + 8], "little") for at in range(0, len(padded), 8)]
    return f"alignas(16) const uint64_t {name}[] = {{\n{_lines(f'{word:#x}' for word in words)}}};"


def _lines(words: Iterable[str]) -> str:
    listed = list(words)
    starts = range(0, len(listed), _WORDS_A_LINE)
    return "".join(f"{', '.join(listed[at : at + _WORDS_A_LINE])},\n" for at in starts)


def _constants() -> Iterator[str]:
    limits = (
        launch.DECODE_PROGRAMS,
        launch.MIN_SPLIT_TOKENS,
        launch.MAX_SPLITS,
        launch.NO_WINDOW,
        launch.ALIGNMENT,
        repr(launch.LOG2E),
    )
    yield f"const int32_t kAbiVersion = {ABI_VERSION};"
    yield f"const Limits kLimits = {{{', '.join(map(str, limits))}}};"
    yield "const ArgumentList kArguments[kKernelNames] = {"
    for kernel in KERNELS:
        names = launch.ARGUMENTS[kernel]
        yield f"{{{len(names)}, {{{', '.join(map(_constant, names))}}}}},"
    yield "};"


def _entry(entry: KernelEntry, code: str, size: int) -> str:
    fields = (
        _config(entry.config),
        _constant(entry.kernel),
        f'"{entry.capability}"',
        f'"{entry.symbol}"',
        entry.num_warps,
        entry.shared_bytes,
        entry.hidden_pointers,
        tile(entry.config, entry.kernel, entry.capability).rows,
        code,
        size,
    )
    return f"{{{', '.join(map(str, fields))}}},"


def _config(config: KernelConfig) -> str:
    fields = (
        f"Io::{_constant(config.io)}",
        config.num_heads,
        config.kv_heads,
        config.head_dim,
        config.block_size,
        f"Cache::{_constant(config.cache)}",
        config.rotary_dim,
        *(str(flag).lower() for flag in (config.interleaved, config.has_sinks, config.has_softcap)),
    )
    return f"{{{', '.join(map(str, fields))}}}"


def _constant(name: str) -> str:
    """The name of the constant that stands for it in table.h: k_cache is kKCache."""
    return "k" + "".join(part.capitalize() for part in name.split("_"))
