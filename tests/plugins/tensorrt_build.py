"""Build an engine round one node of the attention plugin: ``python tensorrt_build.py JSON``.

A process of its own, as TensorRT-RTX may end it. Prints the engine's bytes, what the library said,
and whether the node's scale was serialized.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import Any

import numpy as np
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper

from enginewright.plugins.attention import tensorrt as plugin

HEADS, KV_HEADS = 8, 4
SCALE = 0.1234567
lines: list[str] = []


class Logger(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.ERROR:
            lines.append(message)


def model(case: dict[str, Any]) -> bytes:
    io = getattr(TensorProto, case["io"])
    cache = getattr(TensorProto, case["cache"])
    dim, rotary, size = case["head_dim"], case["rotary_dim"], 32
    pool = ["N", KV_HEADS, size, dim]
    shapes: dict[str, tuple[int, list[Any]]] = {
        "q": (io, ["B", "S", HEADS * dim]),
        "k": (io, ["B", "S", KV_HEADS * dim]),
        "v": (io, ["B", "S", KV_HEADS * dim]),
        "k_cache.0": (cache, pool),
        "v_cache.0": (cache, pool),
        "block_table": (TensorProto.INT32, ["B", "n"]),
        "past_lengths": (TensorProto.INT32, ["B"]),
        "new_lengths": (TensorProto.INT32, ["B"]),
    }
    constants = {}
    if rotary:
        constants |= dict.fromkeys(("cos", "sin"), np.zeros((1024, rotary // 2), np.float32))
    if case["has_sinks"]:
        constants["sinks"] = np.zeros(HEADS, np.float32)
    if case["io"] != case["cache"]:
        constants |= dict.fromkeys(("k_scale", "v_scale"), np.ones(KV_HEADS, np.float32))
    caches = ["k_cache.0.out", "v_cache.0.out"]
    nodes = [
        helper.make_node(
            plugin.PLUGIN_NAME,
            [*shapes, *constants],
            ["attended", *caches],
            domain=plugin.PLUGIN_NAMESPACE,
            num_heads=HEADS,
            kv_heads=KV_HEADS,
            scale=SCALE,
            window=case["window"],
            softcap=case["softcap"],
            rotary_dim=rotary,
            interleaved=0,
            abi_version=case["abi_version"],
            has_sinks=case["has_sinks"],
            quantized=int(case["io"] != case["cache"]),
            block_size=size,
            plugin_version=plugin.PLUGIN_VERSION,
            plugin_namespace=plugin.PLUGIN_NAMESPACE,
        ),
        helper.make_node("Relu", ["attended"], ["out"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "attention",
        [value(name, *shape) for name, shape in shapes.items()],
        [value("out", *shapes["q"]), *(value(name, cache, pool) for name in caches)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(plugin.PLUGIN_NAMESPACE, 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    content: bytes = made.SerializeToString()
    return content


def build(case: dict[str, Any]) -> int:
    """Bytes of the engine; 0 where the library refuses."""
    logger = Logger()
    plugin.register(trt)
    plugin.register(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not trt.OnnxParser(network, logger).parse(model(case)):
        return 0
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(case["capabilities"])
    for index, name in enumerate(case["capabilities"]):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    dim = case["head_dim"]
    for width in (1, 512):
        profile = builder.create_optimization_profile()
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            size = heads * dim
            profile.set_shape(name, (1, 1, size), (2, width, size), (8, width, size))
        for name in ("k_cache.0", "v_cache.0"):
            pool = (KV_HEADS, 32, dim)
            profile.set_shape(name, (1, *pool), (64, *pool), (4096, *pool))
        profile.set_shape("block_table", (1, 1), (2, 4), (8, 64))
        for name in ("past_lengths", "new_lengths"):
            profile.set_shape(name, (1,), (2,), (8,))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return 0
    print("serialized" if struct.pack("<f", SCALE) in bytes(engine) else "not serialized")
    return int(engine.nbytes)


if __name__ == "__main__":
    size = build(json.loads(sys.argv[1]))
    print(json.dumps({"size": size, "errors": lines}))
