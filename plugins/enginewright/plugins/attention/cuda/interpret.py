"""Runs the planned launches of one node on the CPU, with Triton's interpreter: for parity sweeps.

| array                 | shape                       | dtype                                     |
|-----------------------|-----------------------------|-------------------------------------------|
| q, k, v, out          | contract.py                 | float32, rounded to the config's io       |
| k_cache, v_cache      | [blocks, kv_heads, size, D] | the same; int8 codes; uint8 bits of e4m3  |
| all others            | contract.py                 | contract.py                               |
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.attention.cuda.config import KernelConfig
from enginewright.plugins.attention.cuda.constants import constants
from enginewright.plugins.attention.cuda.launch import Scalars, Shape, launches, workspace_bytes

Arrays = dict[str, NDArray[Any]]


def interpreter() -> ProcessPoolExecutor:
    """A process of its own for ``run``: Triton reads its switch when kernels are imported."""
    return ProcessPoolExecutor(1, get_context("spawn"), _interpret_triton)


def _interpret_triton() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def run(
    config: KernelConfig,
    capability: str,
    scalars: Scalars,
    arrays: Arrays,
    native_fp8: bool | None = None,
) -> tuple[Arrays, tuple[str, ...]]:
    """out, k_cache and v_cache after the launches, and which kernels those were.

    ``arrays``: the inputs and ``out`` as it is before. Needs a process of ``interpreter``.
    """
    import torch

    from enginewright.plugins.attention.cuda.sources import SOURCES

    batch, tokens, _ = arrays["q"].shape
    shape = Shape(batch, tokens, arrays["block_table"].shape[1])
    io = getattr(torch, config.io)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    for name in ("q", "k", "v", "out") + (() if config.quantized else ("k_cache", "v_cache")):
        tensors[name] = tensors[name].to(io)
    size = workspace_bytes(config, batch) // 4
    tensors["workspace"] = torch.full([size], float("nan"))
    planned = launches(config, capability, shape, scalars, tensors)
    for launch in planned:
        values = [argument.value for argument in launch.arguments]
        wide = config.io == "bfloat16"
        constant = constants(config, launch.kernel, capability, native_fp8, wide)
        SOURCES[launch.kernel][launch.grid](*values, **constant)
    results = {name: tensors[name] for name in ("out", "k_cache", "v_cache")}
    after = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in results.items()
    }
    return after, tuple(launch.kernel for launch in planned)
