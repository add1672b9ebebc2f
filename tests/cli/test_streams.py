"""Standard streams that are closed or full: no traceback, and no file in a stream's place."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

CLI = f"{shlex.quote(sys.executable)} -m enginewright.cli"
CLOSED = "error: standard output is closed; to run without it, send it to /dev/null\n"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", ["--help", "--version", "inspect --help", "inspect {}"])
@pytest.mark.parametrize("streams", [">&-", "<&- >&-"])
def test_a_closed_stdout_is_exit_code_1(tiny_artifact: Path, arguments: str, streams: str) -> None:
    done = shell(f"{CLI} {arguments.format(tiny_artifact)} {streams}")
    assert (done.returncode, done.stderr) == (1, CLOSED)


@pytest.mark.parametrize("environment", ["-u PYTHONUNBUFFERED", "PYTHONUNBUFFERED=1"])
@pytest.mark.parametrize("arguments", ["--help", "inspect {}"])
def test_a_full_stdout_is_exit_code_1(
    tiny_artifact: Path, arguments: str, environment: str
) -> None:
    done = shell(f"env {environment} {CLI} {arguments.format(tiny_artifact)} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "error: No space left on device: output\n")


def test_all_streams_closed(tiny_artifact: Path) -> None:
    assert shell(f"{CLI} inspect {tiny_artifact} <&- >&- 2>&-").returncode == 1


@pytest.mark.parametrize("streams", ["<&-", "2>&-", "<&- 2>&-"])
def test_other_closed_streams_harm_nothing(tiny_artifact: Path, streams: str) -> None:
    done = shell(f"{CLI} run {tiny_artifact} hi --max-tokens 1 --threads 1 {streams}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_closed_stdin_is_an_empty_prompt(tiny_artifact: Path) -> None:
    done = shell(f"{CLI} run {tiny_artifact} <&-")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the prompt is empty")


@pytest.mark.parametrize("streams", ["<&-", "2>&-"])
def test_a_conversation_without_input_or_errors_ends(tiny_artifact: Path, streams: str) -> None:
    done = shell(f"{CLI} chat {tiny_artifact} --threads 1 {streams}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


_OPEN = """
import subprocess, sys
from enginewright.cli.streams import settle_streams
assert settle_streams()
own = open(sys.argv[1], "w").fileno()
child = "import os, sys; print(os.fstat(0).st_rdev == os.fstat(2).st_rdev != 0)"
said = subprocess.run([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True).stdout
print(own > 2, said.strip())
"""


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    script = f"{shlex.quote(sys.executable)} -c {shlex.quote(_OPEN)} {tmp_path / 'file'}"
    assert shell(f"{script} <&- 2>&-").stdout == "True True\n"
