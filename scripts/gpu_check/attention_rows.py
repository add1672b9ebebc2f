"""Rows of the attention kernels: equal to PyTorch's, and how near they come to the floor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from scripts.gpu_check.attention import Case, Node, load
from scripts.gpu_check.report import Row, held
from scripts.gpu_check.timing import microseconds

_ERROR = 2e-3
"""Of float16 outputs of averages of unit noise; PyTorch's own kernels differ by as much."""
_WALK = 1 << 30
"""Bytes that a timing walks through, well above what any cache holds."""


def _decode(name: str, heads: tuple[int, int, int], batch: int, context: int) -> Case:
    case = Case(name, *heads, batch=batch, tokens=1, past=context - 1)
    layers = max(1, min(64, _WALK // case.kv_bytes))
    return Case(name, *heads, batch=batch, tokens=1, past=context - 1, layers=layers)


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
    """Parity and speed of every case."""
    kernels = load([*DECODE, *PREFILL, *RAGGED], folder, capability)
    for case in (*RAGGED, *DECODE, *PREFILL):
        node = Node(case, kernels)
        node.run()
        yield _parity(node)
        if case in DECODE:
            yield _decode_speed(node, bandwidth)
        elif case in PREFILL:
            yield _prefill_speed(node)
        del node
        torch.cuda.empty_cache()


def _parity(node: Node) -> Row:
    """The largest difference from attention in float32 over what stands in the pool afterwards."""
    case = node.case
    k, v = (x.float() for x in node.contiguous(case.layers - 1))
    expected = F.scaled_dot_product_attention(
        node.queries().float(), k, v, attn_mask=_mask(case), enable_gqa=True
    )
    found = node.out.reshape(case.batch, case.tokens, case.heads, -1).transpose(1, 2)
    error = float((found.float() - expected).abs().max())
    verdict = "ok" if error <= _ERROR else "MISSED"
    return Row("attention parity", case.name, f"{error:.1e}", f"<= {_ERROR:g}", verdict)


def _mask(case: Case) -> torch.Tensor:
    at = torch.arange(case.length, device="cuda")
    return at[None, :] <= at[case.past :, None]


def _decode_speed(node: Node, bandwidth: float) -> Row:
    case = node.case
    time = microseconds(node.run) / case.layers
    share = case.kv_bytes / bandwidth * 1e6 / time
    row = held("decode", case.name, share, 0.8, "of the bandwidth floor")
    peer = microseconds(_Peer(node, causal=False))
    return Row(
        row.section,
        row.what,
        f"{row.value}; {time:.1f} us; torch SDPA over contiguous keys {peer:.1f} us",
        row.goal,
        row.verdict,
    )


def _prefill_speed(node: Node) -> Row:
    case = node.case
    time = microseconds(node.run)
    if case.past:
        return Row("prefill", case.name, f"{time:.1f} us")
    flash = microseconds(_Peer(node, causal=True))
    row = held("prefill", case.name, flash / time, 1 / 1.3, "of flash SDPA's speed")
    return Row(
        row.section, row.what, f"{row.value}; {time:.1f} us; flash {flash:.1f} us", row.goal,
        row.verdict,
    )  # fmt: skip


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
