"""A process of its own for a part of a build, whose lines are told as they come."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def run_child(
    command: Sequence[str], environment: Mapping[str, str], said: Path, tell: Callable[[str], None]
) -> int:
    """Run it to its end and return its status; what it writes to stderr goes to the file ``said``.

    An interrupted build leaves no process behind.
    """
    with (
        said.open("wb") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tell(line.rstrip())
        except BaseException:
            process.kill()
            raise
    return process.returncode
