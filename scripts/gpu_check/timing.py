"""Time of a call on the device, by events, from a graph so that launches do not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_WARM_UP = 5
_REPEATS = 20


def microseconds(call: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Median time of one call; it runs on torch's current stream.

    The call is captured once and replayed, as a decode step is.
    """
    cuda: Any = torch.cuda
    side = cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times: list[float] = []
    for _ in range(repeats):
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]
