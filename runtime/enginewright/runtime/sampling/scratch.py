"""Arrays of a vocabulary's size that each thread writes over and over.

To make them anew for every token costs more than what is computed in them: the system gives out
such arrays as fresh pages, and each first touch of a page is a fault.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Rows(threading.local):
    def __init__(self) -> None:
        self.held: dict[str, NDArray[Any]] = {}


_ROWS = _Rows()


def floats(use: str, size: int) -> NDArray[np.float32]:
    """The thread's row for this use, holding anything; its next caller gets the same one."""
    return _row(use, size, np.float32)


def flags(use: str, size: int) -> NDArray[np.bool_]:
    """The same, of truth values."""
    return _row(use, size, np.bool_)


def _row(use: str, size: int, dtype: Any) -> NDArray[Any]:
    held = _ROWS.held.get(use)
    if held is None or held.size < size:
        held = _ROWS.held[use] = np.empty(size, dtype)
    return held[:size]
