"""CUDA graphs: what was queued once on a stream, replayed by one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enginewright.runtime.cuda.driver import bindings, call, release_quietly
from enginewright.runtime.cuda.stream import Stream


class Graph:
    """A captured graph. It holds the addresses of the memory that was used, not the memory."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    @staticmethod
    def capture(stream: Stream, queue: Callable[[], None]) -> Graph:
        """Record what ``queue`` queues on the stream, without running it.

        ``queue`` must have run before: what is allocated or compiled on first use cannot be
        captured.
        """
        mode = bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call("cuStreamBeginCapture", stream.handle, mode)
        try:
            queue()
        except BaseException:
            release_quietly(lambda: call("cuStreamEndCapture", stream.handle))
            raise
        graph = call("cuStreamEndCapture", stream.handle)
        try:
            return Graph(call("cuGraphInstantiate", graph, 0))
        finally:
            call("cuGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Queue all of it."""
        call("cuGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Give the graph back; twice is allowed."""
        if self._executable is not None:
            call("cuGraphExecDestroy", self._executable)
        self._executable = None
