"""A client of an OpenAI-compatible server, on plain sockets, in a process of its own.

``http_client.py PORT``: reads a phase (JSON) a line from stdin, prints what it saw a line. A phase
is {"kind", ...}: "lone" {"body", "count"}: one request after another on one connection; "streams"
{"bodies"}: all of them at once; "meet" {"stream", "prompt", "after"}: a prompt that arrives when a
stream has got so many events, and the stream is given up when the prompt is answered. Times are
seconds.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
import time
from itertools import pairwise
from typing import Any

EVENT = b"data: {"
END = b"data: [DONE]"


class Connection:
    """One request at a time on a connection; ``events`` are the times of what was streamed."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.events: list[float] = []
        self._tail, self._begun = b"", False

    def send(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        self.socket.sendall(head.encode() + content)

    def whole(self) -> None:
        """Read an answer that is not a stream."""
        read = b""
        while b"\r\n\r\n" not in read:
            read += self._receive()
        head, _, body = read.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answers {(head + body)[:500]!r}")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        while len(body) < length:
            body += self._receive()

    def more(self) -> bool:
        """Read what has arrived of a stream; whether there is more of it."""
        arrived = self._tail + self._receive()
        if not self._begun and not arrived.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answers {arrived[:500]!r}")
        self._begun = True
        lines = arrived.split(b"\n")
        self._tail = lines.pop()
        self.events += [time.perf_counter()] * sum(line.startswith(EVENT) for line in lines)
        return END not in (line.strip() for line in lines)

    def _receive(self) -> bytes:
        read = self.socket.recv(1 << 16)
        if not read:
            raise SystemExit("the server closed the connection")
        return read


def lone(port: int, phase: dict[str, Any]) -> dict[str, Any]:
    connection, seconds = Connection(port), []
    for _ in range(phase["count"]):
        started = time.perf_counter()
        connection.send(phase["body"])
        connection.whole()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds}


def streams(port: int, phase: dict[str, Any]) -> dict[str, Any]:
    started, selector = time.perf_counter(), selectors.DefaultSelector()
    connections = [Connection(port) for _ in phase["bodies"]]
    for connection, body in zip(connections, phase["bodies"], strict=True):
        connection.send(body)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    left = len(connections)
    while left:
        for key, _ in selector.select():
            if not key.data.more():
                selector.unregister(key.fileobj)
                left -= 1
    first = [connection.events[0] - started for connection in connections]
    return {"wall_s": time.perf_counter() - started, "first_s": first}


def meet(port: int, phase: dict[str, Any]) -> dict[str, Any]:
    stream, late = Connection(port), Connection(port)
    stream.send(phase["stream"])
    while len(stream.events) < phase["after"]:
        stream.more()
    before = len(stream.events)
    started = time.perf_counter()
    late.send(phase["prompt"])
    while True:
        ready = _ready(stream, late)
        if stream in ready and not stream.more():
            raise SystemExit("the stream ended before the prompt was answered")
        if late in ready:
            late.whole()
            break
    ended = time.perf_counter()
    stream.socket.close()
    gaps = [later - earlier for earlier, later in pairwise(stream.events)]
    alone, during = gaps[: before - 1], gaps[before - 1 :]
    return {"alone_s": alone, "during_s": during, "prompt_s": ended - started}


def _ready(*connections: Connection) -> list[Connection]:
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        return [key.data for key, _ in selector.select()]


PHASES = {"lone": lone, "streams": streams, "meet": meet}


def main() -> None:
    port = int(sys.argv[1])
    for line in sys.stdin:
        phase = json.loads(line)
        before = resource.getrusage(resource.RUSAGE_SELF)
        seen = PHASES[phase["kind"]](port, phase)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({**seen, "client_cpu_s": cpu}), flush=True)


main()
