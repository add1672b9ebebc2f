"""The Triton sources by the names of their kernels."""

from __future__ import annotations

from typing import Any

from enginewright.plugins.attention.cuda.cache_write import cache_write
from enginewright.plugins.attention.cuda.config import KERNELS
from enginewright.plugins.attention.cuda.decode import decode, reduce
from enginewright.plugins.attention.cuda.prefill import prefill

SOURCES: dict[str, Any] = {
    "cache_write": cache_write,
    "decode": decode,
    "reduce": reduce,
    "prefill": prefill,
}
assert tuple(SOURCES) == KERNELS
