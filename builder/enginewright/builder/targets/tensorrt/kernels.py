"""The attention plugin's kernels, compiled into the artifact for every capability of an engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from enginewright.builder.passes.lower_plugin_attention import PLUGIN_TYPE
from enginewright.plugins.attention import tensorrt as plugin
from enginewright.plugins.attention.cuda.config import KernelConfig, UnsupportedAttentionError
from enginewright.plugins.attention.cuda.kernel_set import KernelSet
from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.manifest import PluginEntry
from enginewright.runtime.artifact.native_code import remember
from enginewright.runtime.errors import MissingDependencyError, UnsupportedModelError

_IO = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
_CACHES = {ir.DataType.INT8: "int8", ir.DataType.FLOAT8E4M3FN: "fp8"}


def check_compiler() -> None:
    """Raise MissingDependencyError where there is nothing to compile kernels with."""
    if importlib.util.find_spec("triton") is None:
        raise MissingDependencyError(
            "attention: plugin compiles its kernels with Triton, on Linux x86-64: "
            "pip install 'enginewright[kernels]'; attention: native needs none"
        )


def compile_kernels(
    graph: ir.Graph, capabilities: Sequence[str], folder: Path, place: str
) -> tuple[PluginEntry, tuple[str, ...]]:
    """Compile what the graph's attention launches into ``folder / place``; the plugin's entry, and
    the files, relative to ``folder``.

    Raises UnsupportedModelError for attention that the kernels do not cover. What was compiled
    here may run here, so its hashes are remembered.
    """
    from enginewright.plugins.attention.cuda.compile import compile_kernels as compile_all

    try:
        configs = [_config(node) for node in graph if node.op_type == PLUGIN_TYPE]
        made: KernelSet = compile_all(configs, capabilities, folder / place)
    except UnsupportedAttentionError as error:
        raise UnsupportedModelError(f"attention: plugin: {error}") from error
    files = tuple(f"{place}/{file}" for file in made.files)
    for file in files:
        remember(sha256_file(folder / file))
    entry = PluginEntry(
        plugin.PLUGIN_NAME, plugin.PLUGIN_VERSION, plugin.PLUGIN_NAMESPACE, made.abi, files[0]
    )
    return entry, files


def _config(node: ir.Node) -> KernelConfig:
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    fields = plugin.Fields(**{field: given[field] for field in plugin.Fields.__annotations__})
    queries, cache = node.inputs[0], node.inputs[3]
    assert queries is not None
    assert cache is not None
    assert queries.dtype is not None
    assert cache.dtype is not None
    assert cache.shape is not None
    head_dim = cache.shape[3]
    assert isinstance(head_dim, int)
    return fields.config(_IO[queries.dtype], _CACHES.get(cache.dtype, "same"), head_dim)
