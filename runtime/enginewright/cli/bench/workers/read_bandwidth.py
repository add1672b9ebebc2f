"""A worker: how fast this machine reads memory and multiplies, with so many threads.

Reads {"threads"}; prints {"read_bytes_per_s", "flops"}. The largest element of whole numbers is
found at the speed of memory, and numpy lets other threads run meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

BUFFER_BYTES = 128 * 2**20
"""Of each thread."""
SIDE = 1536
PASSES = 7


def main() -> None:
    threads = json.load(sys.stdin)["threads"]
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(threads)
    import numpy as np

    buffers = [np.ones(BUFFER_BYTES // 4, np.int32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        read = best(lambda: list(pool.map(np.max, buffers)))
    square: Any = np.ones((SIDE, SIDE), np.float32)
    product = best(lambda: square @ square)
    said = {"read_bytes_per_s": threads * BUFFER_BYTES / read, "flops": 2 * SIDE**3 / product}
    print(json.dumps(said))


def best(work: Callable[[], Any]) -> float:
    """Seconds of the shortest of several passes, after one to warm up."""
    work()
    taken = []
    for _ in range(PASSES):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


main()
