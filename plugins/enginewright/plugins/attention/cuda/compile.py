"""Compiles the attention kernels to cubins, with Triton and the ptxas in it; needs no GPU."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from enginewright.plugins.attention.cuda.config import (
    KERNELS,
    SHARED_BYTES,
    KernelConfig,
    UnsupportedAttentionError,
    check_capability,
    tile,
)
from enginewright.plugins.attention.cuda.constants import constants
from enginewright.plugins.attention.cuda.kernel_set import KernelEntry, KernelSet, abi_digest
from enginewright.plugins.attention.cuda.launch import ALIGNMENT, ARGUMENTS, FLOATS, POINTERS
from enginewright.plugins.attention.cuda.sources import SOURCES

FLOAT_POINTERS = ("cos", "sin", "sinks", "k_scale", "v_scale", "workspace")
INT_POINTERS = ("block_table", "past_lengths", "new_lengths")
TRITON_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "int8": "i8", "fp8": "u8"}


def compile_kernels(
    configs: Iterable[KernelConfig], capabilities: Sequence[str], folder: Path
) -> KernelSet:
    """Compile what nodes of ``configs`` launch on each capability; cubins and index in ``folder``.

    Raises UnsupportedAttentionError for what cannot be compiled, before anything is written.
    """
    unique = tuple(dict.fromkeys(configs))
    for config in unique:
        for capability in capabilities:
            check_capability(config, capability)
    folder.mkdir(parents=True, exist_ok=True)
    entries = tuple(
        _compile(config, kernel, capability, folder)
        for config in unique
        for kernel in KERNELS
        for capability in capabilities
    )
    compiled = KernelSet(folder, abi_digest(), f"triton {triton.__version__}", entries)
    compiled.write()
    return compiled


def _compile(config: KernelConfig, kernel: str, capability: str, folder: Path) -> KernelEntry:
    cut = tile(config, kernel, capability)
    target = GPUTarget("cuda", int(capability.replace(".", "")), 32)
    # Triton's default for fusing multiply and add differs between its versions.
    options = {"num_warps": cut.num_warps, "num_stages": cut.num_stages, "enable_fp_fusion": True}
    built = triton.compile(_source(config, kernel, capability), target=target, options=options)
    told = built.metadata
    if told.shared > SHARED_BYTES[capability]:
        raise UnsupportedAttentionError(
            f"kernel {kernel!r} takes {told.shared} bytes of shared memory for {config}, compute "
            f"capability {capability} has {SHARED_BYTES[capability]}: a smaller head size is needed"
        )
    # What is null at every launch must not be used by the kernel.
    assert told.global_scratch_size == 0
    assert told.profile_scratch_size == 0
    code = built.asm["cubin"]
    file = f"{kernel}-{config.key}-sm{capability.replace('.', '')}.cubin"
    (folder / file).write_bytes(code)
    registers, spilled = _resources(folder / file)
    shown = len(built.asm["ptx"].split(".entry", 1)[1].split(")", 1)[0].split(".param")) - 1
    return KernelEntry(
        kernel=kernel,
        config=config,
        capability=capability,
        file=file,
        sha256=hashlib.sha256(code).hexdigest(),
        symbol=told.name,
        num_warps=told.num_warps,
        shared_bytes=told.shared,
        registers=registers,
        spill_bytes=spilled,
        hidden_pointers=shown - len(ARGUMENTS[kernel]),
    )


def _source(config: KernelConfig, kernel: str, capability: str) -> Any:
    function, arguments = SOURCES[kernel], ARGUMENTS[kernel]
    constant = constants(config, kernel, capability)
    names = tuple(function.arg_names)
    assert names[: len(arguments)] == arguments, (kernel, names)
    assert set(names[len(arguments) :]) == set(constant), (kernel, names)
    aligned = [["tt.divisibility", ALIGNMENT]]
    return ASTSource(
        function,
        {name: _type(name, config) if name in arguments else "constexpr" for name in names},
        constexprs=constant,
        attrs={(at,): aligned for at, name in enumerate(arguments) if name in POINTERS},
    )


def _type(name: str, config: KernelConfig) -> str:
    if name not in POINTERS:
        return "fp32" if name in FLOATS else "i32"
    if name in FLOAT_POINTERS or name in INT_POINTERS:
        return "*fp32" if name in FLOAT_POINTERS else "*i32"
    stored = config.cache if name in ("k_cache", "v_cache") and config.quantized else config.io
    return f"*{TRITON_DTYPES[stored]}"


def _resources(cubin: Path) -> tuple[int, int]:
    """Registers, and bytes of stack, of a thread. These kernels have no stack but for spills."""
    tool = triton.knobs.nvidia.cuobjdump.path
    command = [tool, "--dump-resource-usage", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    assert found is not None, done.stdout
    return int(found[1]), int(found[2])
