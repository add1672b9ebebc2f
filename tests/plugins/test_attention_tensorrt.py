"""The attention plugin in TensorRT-RTX: engines are built with it, and it launches what it should.

No engine runs here: that needs a GPU. enqueue is called as TensorRT calls it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginewright.builder.targets.tensorrt.library import find_library
from enginewright.plugins.attention import tensorrt as plugin
from enginewright.plugins.attention.cuda.config import KernelConfig
from enginewright.plugins.attention.cuda.launch import Launch

trt = pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnx")

ALL = ["SM80", "SM86", "SM89", "SM120", "SM121"]
CASE = {
    "io": "FLOAT16",
    "cache": "FLOAT16",
    "head_dim": 64,
    "rotary_dim": 64,
    "window": 0,
    "softcap": 0.0,
    "has_sinks": 0,
    "abi_version": 1,
    "capabilities": ALL,
}
FIELDS = plugin.Fields(8, 4, 0.125, 0, 0.0, 64, 0, 1, 0, 0, 32)


def built(**changes: Any) -> tuple[int, str]:
    """Bytes of the engine, and all that was said."""
    script = Path(__file__).parent / "tensorrt_build.py"
    with find_library("tensorrt_rtx").environment() as environment:
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(CASE | changes)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
    told = json.loads(done.stdout.splitlines()[-1])
    return told["size"], f"{told['errors']} {done.stdout} {done.stderr}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"io": "BFLOAT16", "cache": "BFLOAT16", "rotary_dim": 0, "has_sinks": 1},
        {"cache": "INT8", "window": 256, "softcap": 30.0},
        {"cache": "FLOAT8E4M3FN", "has_sinks": 1},
        {"head_dim": 256, "rotary_dim": 128, "capabilities": ["SM75"]},
    ],
    ids=["plain", "bf16-sinks-no-rotary", "int8-window-cap", "fp8-sinks", "wide-heads-turing"],
)
def test_an_engine_is_built_for_all_capabilities_at_once(changes: dict[str, Any]) -> None:
    size, said = built(**changes)
    assert size > 10_000, said
    assert "not serialized" not in said, "the node's fields are in the engine"


def test_another_abi_is_refused_at_parsing() -> None:
    size, said = built(abi_version=2)
    assert size == 0
    assert "abi_version 2, this plugin has 1" in said


def test_a_head_size_without_kernels_is_refused_at_build() -> None:
    size, said = built(head_dim=40, rotary_dim=40)
    assert size == 0
    assert "head size 40: the attention kernels cover multiples of 16" in said


def node(fields: plugin.Fields, launcher: Any = None) -> Any:
    """A plugin as the registered creator makes it of the fields that another serialized."""
    plugin.register(trt, launcher)
    registry = trt.get_plugin_registry()
    creator = registry.get_creator(
        plugin.PLUGIN_NAME, plugin.PLUGIN_VERSION, plugin.PLUGIN_NAMESPACE
    )
    assert creator is not None
    first = plugin._plugin(trt)(trt, fields, None)
    serialized = first.get_fields_to_serialize()
    return plugin._CREATORS["tensorrt_rtx"].create_plugin("", serialized, None)


@pytest.mark.parametrize(
    "fields", [FIELDS, replace(FIELDS, scale=0.1, window=7, softcap=2.5, has_sinks=1, quantized=1)]
)
def test_fields_survive_serialization(fields: plugin.Fields) -> None:
    assert astuple(node(fields).attributes) == pytest.approx(astuple(fields))


class Recorder:
    """A launcher that keeps what it is given."""

    capability = "8.6"

    def __init__(self) -> None:
        self.launches: list[tuple[KernelConfig, Launch, int]] = []

    def launch(self, config: KernelConfig, launch: Launch, stream: int) -> None:
        self.launches.append((config, launch, stream))


def described(kind: Any, *dims: int) -> Any:
    return SimpleNamespace(type=kind, dims=dims)


@pytest.mark.parametrize(
    ("tokens", "kernels"),
    [(1, ["cache_write", "decode", "reduce"]), (5, ["cache_write", "prefill"])],
)
def test_enqueue_launches_the_kernels_with_the_tensors_of_their_names(
    tokens: int, kernels: list[str]
) -> None:
    recorder = Recorder()
    fields = replace(FIELDS, has_sinks=1, quantized=1, window=9)
    made = node(fields, recorder).attach_to_context(None)
    types = trt.DataType
    inputs = [described(types.HALF, 3, tokens, 512)]
    inputs += [described(types.HALF, 3, tokens, 256)] * 2
    inputs += [described(types.INT8, 40, 4, 32, 64)] * 2
    inputs += [described(types.INT32, 3, 16), *[described(types.INT32, 3)] * 2]
    inputs += [described(types.FLOAT)] * 5
    addresses = {name: 4096 * (at + 1) for at, name in enumerate(fields.inputs)}
    made.enqueue(inputs, [], list(addresses.values()), [1 << 20, 0, 0], 1 << 24, 77)
    assert [launch.kernel for _, launch, _ in recorder.launches] == kernels
    assert {stream for _, _, stream in recorder.launches} == {77}
    config = KernelConfig("float16", 8, 4, 64, 32, "int8", 64, has_sinks=True)
    assert {found for found, _, _ in recorder.launches} == {config}
    expected = {**addresses, "out": 1 << 20, "workspace": 1 << 24, "window": 9, "blocks": 16}
    for _, launch, _ in recorder.launches:
        for argument in launch.arguments:
            if argument.value is not None and argument.name in expected:
                assert argument.value == expected[argument.name], argument.name


def test_an_engine_that_was_registered_last_gets_its_own_kernels() -> None:
    one, other = Recorder(), Recorder()
    first = node(FIELDS, one)
    second = node(FIELDS, other)
    assert (first.launcher, second.launcher) == (one, other)
    assert first.clone().launcher is one
