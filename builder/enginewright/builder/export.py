"""Hugging Face module -> ONNX graph, with attention left as one op over the cache.

Inputs of the exported graph (B rows, S new positions, n blocks a row):

| tensor                | shape                             | dtype   |
|-----------------------|-----------------------------------|---------|
| input_ids             | [B, S]                            | int64   |
| past_lengths          | [B]                               | int32   |
| new_lengths           | [B]                               | int32   |
| block_table           | [B, n]                            | int32   |
| positions             | [B, S]                            | int64   |
| k_cache.i, v_cache.i  | [blocks, kv_heads, block_size, D] | float32 |

Outputs: logits [B, S, V] float32, then k_cache.i.out and v_cache.i.out. ``positions`` is
past_lengths[b] + s; as an input it marks what depends on nothing but the position.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.initialization import no_init_weights
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from enginewright.builder import linear
from enginewright.builder.families import Family
from enginewright.builder.weight_tensor import WeightTensor
from enginewright.builder.weights import Weight
from enginewright.plugins.attention import export as attention
from enginewright.plugins.attention.export import cached_attention
from enginewright.runtime.errors import SourceError

IMPLEMENTATION = "enginewright"
OPSET = 20
# What transformers' modules raise for a config whose values they cannot follow.
_NO_MODULE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_STEP_INPUTS = ("input_ids", "past_lengths", "new_lengths", "block_table", "positions")


@dataclass(frozen=True)
class CacheShape:
    """One layer's cache: heads and size of a head."""

    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Exported:
    """A traced architecture; its parameters hold no values until ``attach_weights``.

    ``owners`` maps each parameter's initializer to the parameter that owns the values, which is
    another one where parameters are tied.
    """

    model: ir.Model
    caches: tuple[CacheShape, ...]
    owners: Mapping[str, str]


def export(config: PreTrainedConfig, family: Family) -> Exported:
    """Trace the architecture of ``config`` over memory that is never touched."""
    with quiet(), torch.no_grad():
        module = skeleton(config)
        family.prepare(module)
        caches = probe_caches(module)
        model: ir.Model = _trace(module, caches).model
    owners = _detach(model.graph, module)
    return Exported(model, tuple(caches), owners)


def attach_weights(exported: Exported, weight: Callable[[str], Weight]) -> ir.Model:
    """Give every parameter its weight of the source, to be read when it is written.

    Tied parameters share one Weight. Raises SourceError where a shape does not fit.
    """
    graph = exported.model.graph
    weights = {owner: weight(owner) for owner in sorted(set(exported.owners.values()))}
    for name, owner in exported.owners.items():
        value = graph.initializers[name]
        found = weights[owner]
        wanted = tuple(value.shape.numpy()) if value.shape is not None else ()
        if wanted != found.shape:
            raise SourceError(
                f"{owner}: the checkpoint holds shape {found.shape}, its config asks for "
                f"{wanted}; the config and the weights do not belong together"
            )
        value.const_value = WeightTensor(found, name)
    return exported.model


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The module with buffers computed and parameters allocated but never written."""
    try:
        with no_init_weights():
            # from_config writes the attention implementation into the config that it is given.
            module: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                copy.deepcopy(config), attn_implementation=IMPLEMENTATION, dtype=torch.float32
            )
    except _NO_MODULE as error:
        raise SourceError(
            f"transformers cannot make a {config.model_type} model from the config: "
            f"{type(error).__name__}: {error}"
        ) from error
    module.tie_weights()
    module.train(False)
    return module


class _StepState:
    """What the attention function needs of the step, and where it leaves the new caches."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.caches: list[tuple[Tensor, Tensor]] = []
        self.updated: dict[int, tuple[Tensor, Tensor]] = {}
        self.observed: dict[int, CacheShape] = {}


class _SeamCache(Cache):
    """Hands new keys and values through unchanged: the op itself writes the cache."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0


_state: _StepState = _StepState()


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' registry: q, k, v come as [B, heads, S, D]."""
    assert attention_mask is None, "the mask function of the registry gives no mask"
    layer: int = module.layer_idx  # type: ignore[assignment]
    batch, heads, length, head_dim = query.shape
    kv_heads = key.shape[1]
    _state.observed[layer] = CacheShape(kv_heads, head_dim)
    if not _state.caches:
        return query.transpose(1, 2), None
    k_cache, v_cache = _state.caches[layer]
    out, k_out, v_out = cached_attention(
        *(x.transpose(1, 2).reshape(batch, length, -1) for x in (query, key, value)),
        k_cache,
        v_cache,
        _state.tensors["block_table"],
        _state.tensors["past_lengths"],
        _state.tensors["new_lengths"],
        s_aux,
        heads,
        kv_heads,
        head_dim**-0.5 if scaling is None else float(scaling),
        sliding_window or 0,
        softcap or 0.0,
    )
    _state.updated[layer] = (k_out, v_out)
    return out.view(batch, length, heads, head_dim), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _no_mask)


class _Step(nn.Module):
    """One step as a function of tensors alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        past_lengths: Tensor,
        new_lengths: Tensor,
        block_table: Tensor,
        positions: Tensor,
        caches: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        _state.tensors = {
            "block_table": block_table,
            "past_lengths": past_lengths,
            "new_lengths": new_lengths,
        }
        _state.caches = caches
        _state.updated = {}
        output = self.model(
            input_ids=input_ids, position_ids=positions, past_key_values=_SeamCache()
        )
        return output.logits, [_state.updated[layer] for layer in range(len(caches))]


def probe_caches(module: PreTrainedModel) -> list[CacheShape]:
    """Learn each layer's cache shape from one pass over fake tensors; no config field is named."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    _state.caches, _state.observed = [], {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        ids = torch.zeros((1, 2), dtype=torch.int64)
        module(input_ids=ids, position_ids=ids, past_key_values=_SeamCache())
    return [_state.observed[layer] for layer in sorted(_state.observed)]


def _trace(module: PreTrainedModel, caches: list[CacheShape]) -> Any:
    """Example sizes are primes, so that none equals a dimension of the model by accident."""
    batch, length, table, blocks, size = 3, 11, 7, 13, 53
    pools = [
        tuple(torch.zeros(blocks, c.kv_heads, size, c.head_dim) for _ in range(2)) for c in caches
    ]
    example = (
        torch.zeros((batch, length), dtype=torch.int64),
        torch.zeros(batch, dtype=torch.int32),
        torch.ones(batch, dtype=torch.int32),
        torch.zeros((batch, table), dtype=torch.int32),
        torch.zeros((batch, length), dtype=torch.int64),
        pools,
    )
    rows, tokens = {0: "batch"}, {0: "batch", 1: "sequence"}
    pool = {0: "blocks", 2: "block_size"}
    shapes = (
        tokens,
        rows,
        rows,
        {0: "batch", 1: "blocks_per_row"},
        tokens,
        [(pool, pool)] * len(pools),
    )
    names = [f"{kind}_cache.{layer}" for layer in range(len(pools)) for kind in "kv"]
    return torch.onnx.export(
        _Step(module).eval(),
        example,
        dynamo=True,
        dynamic_shapes=shapes,
        opset_version=OPSET,
        optimize=False,
        verbose=False,
        custom_translation_table={**attention.translations(), **linear.translations()},
        input_names=[*_STEP_INPUTS, *names],
        output_names=["logits", *(f"{name}.out" for name in names)],
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters log and warn about packages and internals that are none of the user's."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _detach(graph: ir.Graph, module: nn.Module) -> dict[str, str]:
    """Drop the values of parameters, which were never set; return the owner of each."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    first_name: dict[int, str] = {}
    for name, parameter in parameters.items():
        first_name.setdefault(id(parameter), name)
    owners = {}
    for traced, value in graph.initializers.items():
        found = parameters.get(traced.removeprefix("model."))
        if found is not None:
            owners[traced] = first_name[id(found)]
            value.const_value = ir.ExternalTensor(
                "weights", 0, 0, ir.DataType.FLOAT, shape=ir.Shape(found.shape), name=traced
            )
    return owners
