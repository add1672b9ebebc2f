"""What the C library keeps of freed memory, given back."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None

SCRIPT = """
import ctypes
import os
from pathlib import Path

from enginewright.runtime.freed_memory import give_back

PIECE, PIECES = 64 * 1024, 1024
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


pieces = [library.malloc(PIECE) for _ in range(PIECES)]
for piece in pieces:
    ctypes.memset(piece, 1, PIECE)
for piece in pieces[:-1]:  # the last keeps the heap from shrinking by itself
    library.free(piece)
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(not hasattr(LIBRARY, "malloc_trim"), reason="only glibc can be asked for it")
def test_what_was_freed_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 48
