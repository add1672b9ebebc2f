"""Engines that an artifact can be measured beside: how each is installed, converted and started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from enginewright.cli.bench.environment import bench_folder, environment, pip
from enginewright.runtime.errors import EnginewrightError


@dataclass(frozen=True)
class Peer:
    """One engine. ``requirement`` is pinned; ``worker`` is its module in workers/.

    ``convert(folder, checkpoint, output, precision)`` writes its model from a Hugging Face
    checkpoint with the peer's own builder; ``folder`` is where the peer keeps its things.
    """

    requirement: str
    worker: str
    precisions: tuple[str, ...]
    convert: Callable[[Path, Path, Path, str], None]

    @property
    def folder(self) -> Path:
        """Where its environment and models are kept."""
        folder = bench_folder("peers") / self.requirement.replace("==", "-")
        folder.mkdir(exist_ok=True)
        return folder

    def python(self) -> Path:
        """The interpreter of its own environment, which is made if need be."""
        return environment(self.folder / "environment", [self.requirement]).python

    def model(self, checkpoint: Path, precision: str) -> Path:
        """Its model of a checkpoint, converted if need be."""
        path = self.folder / f"{checkpoint.name}-{precision}"
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self.folder, prefix="making-") as scratch:
                made = Path(scratch) / "model"
                self.convert(self.folder, checkpoint, made, precision)
                made.rename(path)
        return path


def _convert_genai(folder: Path, checkpoint: Path, output: Path, precision: str) -> None:
    """Its builder needs torch and transformers, which this environment has: it is put beside."""
    beside = folder / "builder"
    if not beside.exists():
        pip("install", "--quiet", "--no-deps", "--target", str(beside), GENAI.requirement)
    scratch = output.parent / "cache"
    module = "onnxruntime_genai.models.builder"
    command = [sys.executable, "-m", module, "-i", str(checkpoint), "-o", str(output)]
    command += ["-p", precision, "-e", "cpu", "-c", str(scratch)]
    run_tool(command, {**os.environ, "PYTHONPATH": str(beside), "HF_HUB_OFFLINE": "1"})
    shutil.rmtree(scratch, ignore_errors=True)


def run_tool(command: list[str], env: dict[str, str]) -> None:
    """Run another project's program; raises EnginewrightError with its last words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise EnginewrightError(f"{' '.join(command)}: exit status {done.returncode}\n{tail}")


GENAI = Peer(
    requirement="onnxruntime-genai==0.18.0",
    worker="onnxruntime_genai_engine",
    precisions=("fp32", "int8", "int4"),
    convert=_convert_genai,
)

PEERS = {"onnxruntime-genai": GENAI}
