"""Installs the pinned torch with this interpreter's pip: the CPU build where there is no GPU.

A plain ``pip install torch`` on Linux may bring gigabytes of CUDA packages. So, without a GPU, the
CPU build is asked for by name where pip is set up to look, then at PyTorch's public CPU index;
last, the plain release is taken without its dependencies, and refused if it is a CUDA build.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def pinned_version(constraints: str) -> str:
    """The version of torch in the text of the constraints file."""
    found = re.search(r"^torch==(\S+)$", constraints, re.MULTILINE)
    if found is None:
        raise SystemExit(f"error: {CONSTRAINTS}: no line torch==VERSION")
    return found[1]


def attempts(version: str, *, linux: bool, gpu: bool) -> list[list[str]]:
    """What to give to ``pip install``, one after the other until one is satisfied."""
    if gpu or not linux:
        return [[f"torch=={version}"]]
    quick = ["--retries", "1", "--timeout", "15"]
    return [
        [f"torch=={version}+cpu"],
        [f"torch=={version}+cpu", "--index-url", CPU_INDEX, *quick],
        [f"torch=={version}", "--no-deps"],
    ]


def has_gpu() -> bool:
    """Whether an NVIDIA driver is at work here."""
    if Path("/dev/nvidiactl").exists():
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    return subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0


def installed() -> tuple[str, str] | None:
    """Version and CUDA version of the torch that is installed, read without importing it."""
    code = (
        "import importlib.util as u, pathlib, runpy; s = u.find_spec('torch'); "
        "v = s and runpy.run_path(str(pathlib.Path(s.origin).with_name('version.py'))); "
        "print(v['__version__'] if v else '', v['cuda'] if v else '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, _, cuda = done.stdout.strip("\n").partition(" ")
    return (version, cuda) if version else None


def suits(found: tuple[str, str] | None, version: str, *, gpu: bool) -> bool:
    """Whether the installed torch is the pinned one, and no CUDA build where there is no GPU."""
    if found is None or found[0].partition("+")[0] != version:
        return False
    return gpu or found[1] == "None"


def main() -> None:
    version, gpu = pinned_version(CONSTRAINTS.read_text("utf-8")), has_gpu()
    for arguments in attempts(version, linux=sys.platform == "linux", gpu=gpu):
        if suits(installed(), version, gpu=gpu):
            break
        print(f"pip install {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", *arguments]
        subprocess.run(command, check=False)  # a failed attempt is answered by the next one
    found = installed()
    if not suits(found, version, gpu=gpu):
        have = "nothing" if found is None else f"torch {found[0]} for CUDA {found[1]}"
        raise SystemExit(
            f"error: torch {version} without CUDA is needed here, {have} is installed. Give pip a "
            f"source of the CPU build (its index is {CPU_INDEX}), then run make again."
        )


if __name__ == "__main__":
    main()
