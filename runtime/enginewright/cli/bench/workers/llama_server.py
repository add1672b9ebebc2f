"""A worker: llama.cpp's server in a process of its own, asked by the same client as ours.

Reads {"server", "model", "threads", "rows", "context", "phases": [...]} (http_client.py has the
phases) and prints {"phases": [...]}: what the client saw of each, with the server's "cpu_s".
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enginewright.cli.bench.workers.asking import over_http

LOADING_SECONDS = 120


def main() -> None:
    work = json.load(sys.stdin)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads, rows = str(work["threads"]), work["rows"]
    command = [work["server"], "-m", work["model"], "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", threads, "-tb", threads, "-np", str(rows), "-c", str(rows * work["context"])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until_loaded(server, port)
            said = over_http(port, work["phases"], lambda call: costs(call, server.pid))
            print(json.dumps({"phases": said}))
        finally:
            server.terminate()


def wait_until_loaded(server: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(10 * LOADING_SECONDS):
        if server.poll() is not None:
            raise SystemExit(f"llama-server ended with exit code {server.returncode}")
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        time.sleep(0.1)
    raise SystemExit(f"llama-server was not ready after {LOADING_SECONDS} s")


def costs(call: Callable[[], dict[str, Any]], pid: int) -> dict[str, Any]:
    before = cpu_seconds(pid)
    seen = call()
    return {**seen, "cpu_s": cpu_seconds(pid) - before}


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


main()
