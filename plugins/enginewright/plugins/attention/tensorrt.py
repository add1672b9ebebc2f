"""CachedAttention as a TensorRT plugin: classes made for the TensorRT module that is handed in.

The builder registers it before it parses, the runtime before it deserializes, with a launcher of
the artifact's kernels. Tensors: the table in contract.py, optional inputs left out where absent;
the caches are written in place (outputs 1 and 2 are inputs 3 and 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.attention.contract import ABI_VERSION, DOMAIN, AttentionAttributes
from enginewright.plugins.attention.cuda.config import KernelConfig
from enginewright.plugins.attention.cuda.launch import (
    Launch,
    Scalars,
    Shape,
    launches,
    workspace_bytes,
)

PLUGIN_NAME = "EnginewrightCachedAttention"
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = DOMAIN

_INTEGERS = ("block_table", "past_lengths", "new_lengths")
_FLOATS = ("cos", "sin", "sinks", "k_scale", "v_scale")
OUTPUTS = ("out", "k_cache_out", "v_cache_out")

ALIASES = {1: 3, 2: 4}
"""Input that shares the memory of an output."""


class Launcher(Protocol):
    """The kernels of an engine, loaded for a device of this compute capability."""

    capability: str

    def launch(self, config: KernelConfig, launch: Launch, stream: int) -> None:
        """Queue one kernel on the stream at that address."""


@dataclass(frozen=True)
class Fields:
    """What a node carries; the names are those of the plugin's fields. Flags are 0 or 1."""

    num_heads: int
    kv_heads: int
    scale: float
    window: int
    softcap: float
    rotary_dim: int
    interleaved: int
    abi_version: int
    has_sinks: int
    quantized: int
    block_size: int

    def __post_init__(self) -> None:
        if self.abi_version != ABI_VERSION:
            raise ValueError(
                f"{PLUGIN_NAME}: abi_version {self.abi_version}, this plugin has {ABI_VERSION}"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that such a node has, in order."""
        names = ["q", "k", "v", "k_cache", "v_cache", "block_table", "past_lengths", "new_lengths"]
        names += ["cos", "sin"] if self.rotary_dim else []
        names += ["sinks"] if self.has_sinks else []
        names += ["k_scale", "v_scale"] if self.quantized else []
        return tuple(names)

    @property
    def scalars(self) -> Scalars:
        return Scalars(self.scale, self.window, self.softcap)

    def config(self, io: str, cache: str, head_dim: int) -> KernelConfig:
        """The kernels that such a node runs; dtypes as KernelConfig names them."""
        attributes = AttentionAttributes(
            self.num_heads,
            self.kv_heads,
            self.scale,
            self.window,
            self.softcap,
            self.rotary_dim,
            self.interleaved,
        )
        return KernelConfig.from_attributes(
            attributes,
            io=io,
            head_dim=head_dim,
            block_size=self.block_size,
            cache=cache,
            has_sinks=bool(self.has_sinks),
        )


_FIELDS = fields(Fields)


def register(trt: Any, launcher: Launcher | None = None) -> None:
    """Make the plugin known to the registry of ``trt``, ``tensorrt_rtx`` or ``tensorrt``.

    Plugins that are created from now on launch with ``launcher``; registering again replaces it.
    Without one, an engine can be built, not run.
    """
    creator = _CREATORS.get(trt.__name__)
    if creator is None:
        creator = _creator(trt)
        if not trt.get_plugin_registry().register_creator(creator, PLUGIN_NAMESPACE):
            raise RuntimeError(f"{PLUGIN_NAME}: TensorRT's registry refuses the plugin")
        _CREATORS[trt.__name__] = creator
    creator.launcher = launcher


_CREATORS: dict[str, Any] = {}
"""TensorRT's registry is the process's, and refers to a creator without keeping it alive."""


def _creator(trt: Any) -> Any:
    plugin = _plugin(trt)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        launcher: Launcher | None = None

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = PLUGIN_NAME
            self.plugin_version = PLUGIN_VERSION
            self.plugin_namespace = PLUGIN_NAMESPACE
            self.field_names = trt.PluginFieldCollection(
                [_field(trt, each, _array(each)) for each in _FIELDS]
            )

        def create_plugin(self, name: str, given: Any, phase: Any) -> Any:
            names = {field.name for field in _FIELDS}
            found = {field.name: field.data.item() for field in given if field.name in names}
            return plugin(trt, Fields(**found), self.launcher)

    return Creator()


class _Node:
    """What TensorRT calls, of a node of these attributes; it leaves the rest to TensorRT's classes.

    An error that is raised in ``configure_plugin`` fails the build; elsewhere TensorRT may print it
    and go on.
    """

    def __init__(self, trt: Any, attributes: Fields, launcher: Launcher | None) -> None:
        self.plugin_name = PLUGIN_NAME
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = PLUGIN_NAMESPACE
        self.num_outputs = len(OUTPUTS)
        self.timing_cache_id = ""
        self.trt, self.attributes, self.launcher = trt, attributes, launcher
        self.names = (*attributes.inputs, *OUTPUTS)
        self.values = [_array(*each) for each in zip(_FIELDS, astuple(attributes), strict=True)]
        """Kept, as a field refers to its array's memory without keeping it alive."""

    def get_capability_interface(self, kind: Any) -> Any:
        return self

    def clone(self) -> Any:
        return type(self)(self.trt, self.attributes, self.launcher)

    def attach_to_context(self, context: Any) -> Any:
        return self.clone()

    def get_aliased_input(self, output: int) -> int:
        return ALIASES.get(output, -1)

    def get_output_data_types(self, types: Sequence[Any]) -> list[Any]:
        return [types[0], types[3], types[4]]

    def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> list[Any]:
        return [self.trt.DimsExprs(inputs[at]) for at in (0, 3, 4)]

    def supports_format_combination(self, at: int, tensors: Any, inputs: int) -> bool:
        if len(self.names) != len(tensors):
            return False
        tensor = tensors[at].desc
        linear = tensor.format == self.trt.TensorFormat.LINEAR
        return bool(linear and self._legal(self.names[at], tensor.type, tensors[0].desc.type))

    def configure_plugin(self, inputs: Any, outputs: Any) -> None:
        self._kernels([each.desc for each in inputs])

    def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
        kernels = self._kernels([each.desc for each in inputs])
        return workspace_bytes(kernels, max(inputs[0].max[0], 1))

    def get_valid_tactics(self) -> list[int]:
        return []

    def set_tactic(self, tactic: int) -> None:
        pass

    def on_shape_change(self, inputs: Any, outputs: Any) -> None:
        pass

    def get_fields_to_serialize(self) -> Any:
        named = [
            _field(self.trt, field, values)
            for field, values in zip(_FIELDS, self.values, strict=True)
        ]
        return self.trt.PluginFieldCollection(named)

    def enqueue(
        self,
        input_desc: Any,
        output_desc: Any,
        inputs: Any,
        outputs: Any,
        workspace: int,
        stream: int,
    ) -> None:
        assert self.launcher is not None, "registered to build, not to run"
        kernels = self._kernels(input_desc)
        pointers = dict(zip(self.attributes.inputs, inputs, strict=True))
        pointers |= {"out": outputs[0], "workspace": workspace}
        (batch, tokens, _), (_, blocks) = input_desc[0].dims, input_desc[5].dims
        shape, capability = Shape(batch, tokens, blocks), self.launcher.capability
        for each in launches(kernels, capability, shape, self.attributes.scalars, pointers):
            self.launcher.launch(kernels, each, stream)

    def _legal(self, name: str, found: Any, queries: Any) -> bool:
        """Whether a tensor of that name may have that type, next to queries of another."""
        types = self.trt.DataType
        if name in _INTEGERS:
            return bool(found == types.INT32)
        if name in _FLOATS:
            return bool(found == types.FLOAT)
        if name == "q":
            return found in (types.HALF, types.BF16)
        if self.attributes.quantized and "cache" in name:
            return found in (types.INT8, types.FP8)
        return bool(found == queries)

    def _kernels(self, inputs: Sequence[Any]) -> KernelConfig:
        """What runs a node over such inputs. Raises UnsupportedAttentionError."""
        types, cache = self.trt.DataType, inputs[3]
        computed = {types.HALF: "float16", types.BF16: "bfloat16"}[inputs[0].type]
        cached = {types.INT8: "int8", types.FP8: "fp8"}.get(cache.type, "same")
        return self.attributes.config(computed, cached, cache.dims[3])


def _plugin(trt: Any) -> Any:
    core, build, runtime = trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime
    bases: Any = (trt.IPluginV3, core, build, runtime)

    def start(self: Any, *arguments: Any) -> None:
        for base in bases:
            base.__init__(self)
        _Node.__init__(self, *arguments)

    return type("CachedAttention", (_Node, *bases), {"__init__": start})


def _array(field: Any, *values: float) -> NDArray[Any]:
    return np.array(values, np.float32 if field.type == "float" else np.int32)


def _field(trt: Any, field: Any, values: NDArray[Any]) -> Any:
    kinds = trt.PluginFieldType
    return trt.PluginField(
        field.name, values, kinds.FLOAT32 if field.type == "float" else kinds.INT32
    )
