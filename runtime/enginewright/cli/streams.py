"""Standard streams that the caller closed, and must not be taken by a file, or that are full."""

from __future__ import annotations

import contextlib
import os
import sys


def settle_streams() -> bool:
    """Put the null device where a standard stream is closed; False if that was stdout.

    The next file to be opened would get a closed stream's number, and what a library then prints
    would end in the file. A closed stdin reads as empty; what goes to a closed stderr is lost.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # programs that we start have the same need
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
    return sys.stdout is not None


def give_up_output() -> None:
    """Drop what standard output did not take: Python would try again at its end, and fail."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
