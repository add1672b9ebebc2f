"""What workers that measure a server share: its client, a process of its own, led by phases."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CLIENT = Path(__file__).with_name("http_client.py")

Seen = dict[str, Any]
Metered = Callable[[Callable[[], Seen]], Seen]


def over_http(port: int, phases: Sequence[Mapping[str, Any]], metered: Metered) -> list[Seen]:
    """What the client saw of each phase; ``metered`` adds what the server took meanwhile."""
    command = [sys.executable, str(CLIENT), str(port)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        pipes = client.stdin, client.stdout

        def ask(phase: Mapping[str, Any]) -> Seen:
            pipes[0].write(json.dumps(phase) + "\n")
            line = pipes[1].readline()
            if not line:
                raise SystemExit("the client ended; what it wrote stands above")
            seen: Seen = json.loads(line)
            return seen

        return [metered(lambda: ask(phase)) for phase in phases]  # noqa: B023
