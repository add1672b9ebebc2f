"""The checks by code: what each asks, and what to do where the answer is no (docs/doctor.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from enginewright.runtime.errors import DeviceCode

Code = (
    DeviceCode
    | Literal[
        "manifest_unreadable",
        "manifest_schema",
        "manifest_altered",
        "file_missing",
        "file_size",
        "file_altered",
        "unknown_target",
        "platform",
        "untrusted_code",
        "package_missing",
        "cpu_features",
        "host_memory",
    ]
)
"""A DeviceError carries the same codes."""


@dataclass(frozen=True)
class Meaning:
    """``title`` names what is looked at; ``cure`` says what to do about a problem or warning."""

    title: str
    asks: str
    cure: str


_AGAIN = "copy the artifact again from where it came, or build it again"

MEANINGS: Mapping[Code, Meaning] = {
    "manifest_unreadable": Meaning(
        "manifest", "the manifest can be read, and names files inside the folder only", _AGAIN
    ),
    "manifest_schema": Meaning(
        "schema",
        "the manifest has a schema version that this runtime reads",
        "install the version of enginewright that built the artifact, or build it again",
    ),
    "manifest_altered": Meaning(
        "manifest's digest", "the manifest has the digest that it states of itself", _AGAIN
    ),
    "file_missing": Meaning("files", "every file that the manifest lists is there", _AGAIN),
    "file_size": Meaning(
        "sizes",
        "every file has the size that the manifest states",
        f"a copy was cut short: {_AGAIN}",
    ),
    "file_altered": Meaning(
        "hashes",
        "small files and native code have the hashes that the manifest states; "
        "`enginewright verify` hashes the weights as well",
        _AGAIN,
    ),
    "unknown_target": Meaning(
        "target",
        "this runtime has a backend for the plan's target",
        "install a newer enginewright, or build the model for a target that it names",
    ),
    "platform": Meaning(
        "platform",
        "the plan's files are for this system and processor",
        "build the artifact on such a machine; another plan of it may run",
    ),
    "untrusted_code": Meaning(
        "native code",
        "the plan's own code, a library of operators or GPU kernels, may run here",
        "pass `--allow-native-code` (`allow_native_code=True`) if you trust who built the artifact",
    ),
    "package_missing": Meaning(
        "packages",
        "the packages that the target needs are installed",
        "run the pip command that the finding names",
    ),
    "library_version": Meaning(
        "version",
        "the library's version suits the engine: TensorRT's is the one that built it, "
        "ONNX Runtime's at least the one that enginewright asks for",
        "install the version that the finding names, or build again with the installed one",
    ),
    "cpu_features": Meaning(
        "processor",
        "the processor has the instructions that our operators have kernels for: AVX2, FMA, F16C",
        "nothing has to be done: a plan without our operators goes first; "
        "`plan=` asks for the one with them, in plain C++",
    ),
    "host_memory": Meaning(
        "memory",
        "the memory that this process may use holds weights and cache",
        "lower max_batch or max_context, raise the container's limit, or free memory",
    ),
    "no_driver": Meaning(
        "driver",
        "NVIDIA's driver library can be loaded and starts",
        "install NVIDIA's driver; start a container with the GPU (`--gpus all`)",
    ),
    "driver_version": Meaning(
        "CUDA",
        "the driver runs the CUDA version of the installed packages",
        "install the driver that the finding names, or packages for an older CUDA",
    ),
    "no_device": Meaning(
        "GPU",
        "the driver shows a GPU to this process",
        "check CUDA_VISIBLE_DEVICES and, in a container, that it was given a GPU",
    ),
    "capability": Meaning(
        "capability",
        "the engine was built for the GPU's compute capability",
        "build again with the capability in the recipe's `capabilities`",
    ),
    "out_of_memory": Meaning(
        "GPU memory",
        "weights, cache, logits and an estimate of working memory fit what the GPU has free",
        "lower max_batch or max_context, free the GPU's memory, or build in a smaller precision",
    ),
    "plugin_abi": Meaning(
        "plugin",
        "the plugin that the engine calls has the same name, version, namespace and ABI in "
        "this installation",
        "install the version of enginewright that built the artifact, or build it again",
    ),
    "plugin_kernels": Meaning(
        "kernels",
        "the artifact holds the plugin's kernels for the GPU's compute capability",
        "build again with the capability in the recipe's `capabilities`",
    ),
    "engine_refused": Meaning(
        "engine's header",
        "the engine file's own header agrees with the manifest (the layout of TensorRT-RTX's is "
        "not documented: one that is unknown is a warning); at a load, TensorRT takes the engine",
        "build the artifact again with the installed library",
    ),
    "device_failed": Meaning(
        "device",
        "only while an engine runs: the GPU or its driver did not fail",
        "look at the driver's log (dmesg); start the process again",
    ),
}
