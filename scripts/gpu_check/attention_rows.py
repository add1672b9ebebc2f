"""Rows of the attention kernels: equal to PyTorch's, and how near they come to the floor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from enginewright.runtime.cuda.modules import KernelModules
from scripts.gpu_check.attention import Case, Node, load
from scripts.gpu_check.report import Row
from scripts.gpu_check.timing import microseconds

_TOLERANCE = 4 * 2.0**-11
"""Against 1, or the value where that is more: float16 rounds weights and the result."""
_WALK = 1 << 30
"""Bytes that a timing walks through, well above what any cache holds."""
_ROWS = 512
"""Queries that the comparison takes at a time: it holds scores in float32."""
_FLOOR_SHARE = 0.8
_FLASH_SHARE = 1 / 1.3


def _decode(name: str, heads: tuple[int, int, int], batch: int, context: int) -> Case:
    case = Case(name, *heads, batch=batch, tokens=1, past=context - 1)
    return replace(case, layers=max(1, min(64, _WALK // case.kv_bytes)))


_SMALL, _LARGE = (32, 8, 64), (32, 8, 128)
DECODE = [
    _decode(f"{what}, batch {batch}, {context} tokens", heads, batch, context)
    for what, heads in (("1B heads", _SMALL), ("8B heads", _LARGE))
    for batch, context in ((1, 8192), (1, 32768), (32, 2048))
]
PREFILL = [
    Case(f"{what}, batch {batch}, {tokens} tokens over {past}", *heads, batch, tokens, past)
    for what, heads in (("1B heads", _SMALL), ("8B heads", _LARGE))
    for batch, tokens, past in ((1, 2048, 0), (1, 8192, 0), (4, 512, 1536))
]
RAGGED = [
    Case("9 heads over 3", 9, 3, 64, 5, 1, 130),
    Case("head size 80", 8, 8, 80, 3, 17, 40),
    Case("head size 256", 8, 4, 256, 2, 33, 100),
]


def rows(folder: Path, capability: str, bandwidth: float) -> Iterator[Row]:
    """Parity and speed of every case; one that fails is a row, and the next one runs."""
    torch.manual_seed(0)
    try:
        kernels = load([*DECODE, *PREFILL, *RAGGED], folder, capability)
    except Exception as error:  # noqa: BLE001  the engines' own tests must still run
        yield Row("attention", "all cases", repr(error)[:200], verdict="FAILED")
        return
    for case in (*RAGGED, *DECODE, *PREFILL):
        try:
            yield from _case(case, kernels, bandwidth)
        except Exception as error:  # noqa: BLE001  one case must not lose the others' figures
            yield Row("attention", case.name, repr(error)[:200], verdict="FAILED")
        torch.cuda.empty_cache()


def _case(case: Case, kernels: KernelModules, bandwidth: float) -> Iterator[Row]:
    node = Node(case, kernels)
    node.run()
    yield _parity(node)
    if case in DECODE:
        yield _decode_speed(node, bandwidth)
    elif case in PREFILL:
        yield _prefill_speed(node)


def _parity(node: Node) -> Row:
    """The largest difference from attention in float32 over what stands in the pool afterwards."""
    case = node.case
    k, v = (x.float() for x in node.contiguous(case.layers - 1))
    found = node.out.reshape(case.batch, case.tokens, case.heads, -1).transpose(1, 2).float()
    at, error = torch.arange(case.length, device="cuda"), 0.0
    for start in range(0, case.tokens, _ROWS):
        part = slice(start, start + _ROWS)
        mask = at[None, :] <= at[case.past :, None][part]
        queries = node.queries()[:, :, part].float()
        wanted = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, enable_gqa=True)
        differing = (found[:, :, part] - wanted).abs() / wanted.abs().clamp(min=1)
        error = max(error, float(differing.max()))
    return Row(
        "attention parity",
        case.name,
        f"{error:.1e}",
        f"<= {_TOLERANCE:.2g}",
        "ok" if error <= _TOLERANCE else "MISSED",
        {"relative_error": error},
    )


def _decode_speed(node: Node, bandwidth: float) -> Row:
    case = node.case
    time = microseconds(node.run) / case.layers
    floor = case.kv_bytes / bandwidth * 1e6
    peer = microseconds(_Peer(node, causal=False))
    return Row(
        "decode",
        case.name,
        f"{floor / time:.2f} of the bandwidth floor; {time:.1f} us; torch SDPA over one layer's "
        f"contiguous keys {peer:.1f} us",
        f">= {_FLOOR_SHARE:g}",
        "ok" if floor / time >= _FLOOR_SHARE else "MISSED",
        {"share_of_floor": floor / time, "microseconds": time, "torch_microseconds": peer},
    )


def _prefill_speed(node: Node) -> Row:
    case = node.case
    time = microseconds(node.run)
    if case.past:
        return Row("prefill", case.name, f"{time:.1f} us", figures={"microseconds": time})
    flash = microseconds(_Peer(node, causal=True))
    return Row(
        "prefill",
        case.name,
        f"{flash / time:.2f} of flash SDPA's speed; {time:.1f} us, flash {flash:.1f} us",
        f">= {_FLASH_SHARE:.2f}",
        "ok" if flash / time >= _FLASH_SHARE else "MISSED",
        {"share_of_flash": flash / time, "microseconds": time, "torch_microseconds": flash},
    )


class _Peer:
    """PyTorch's attention over contiguous keys and values, by its flash kernels."""

    def __init__(self, node: Node, *, causal: bool) -> None:
        self._q = node.queries().contiguous()
        self._k, self._v = (x.contiguous() for x in node.contiguous())
        self._causal = causal

    def __call__(self) -> torch.Tensor:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            return F.scaled_dot_product_attention(
                self._q, self._k, self._v, is_causal=self._causal, enable_gqa=True
            )
