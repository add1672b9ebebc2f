"""Target cuda: the graph's types and ops, and its values, interpreted, against Hugging Face's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers

from enginewright.builder import quantization
from enginewright.builder.export import Exported, attach_weights, export
from enginewright.builder.families import family_of
from enginewright.builder.interpreter.engine import InterpretedEngine
from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source import Source, open_source
from enginewright.builder.targets import CompileRequest, target_of
from enginewright.builder.weights import ArrayWeight
from enginewright.runtime.artifact.manifest import EngineEntry, LimitsEntry
from enginewright.runtime.engine import StepBatch
from enginewright.runtime.errors import UnsupportedModelError

CONTEXT = 64
PROMPTS = [[3, 14, 159, 26, 53, 58, 97, 93, 238], [200, 11, 7], [42, 42, 42, 8, 100]]
NEXT = [5, 77, 250]
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SMALL),
    "gemma2": (
        "Gemma2Config",
        {**_SMALL, "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 320}),
    "gpt_neox": (
        "GPTNeoXConfig",
        {**_SMALL, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
    ),
}
LARGEST_DIFFERENCE = {"fp16": 0.05, "bf16": 0.5, "int4": 0.05}
"""Of logits whose deviation is about 4: some ten roundings of each type."""


_traced: dict[str, tuple[onnx.ModelProto, Exported]] = {}


def _exported(source: Source) -> Exported:
    """The source's architecture, traced once for all tests."""
    config = source.model_config()
    key = json.dumps(config.to_dict(), default=str)
    if key not in _traced:
        exported = export(config, family_of(source.architecture))
        _traced[key] = ir.to_proto(exported.model), exported
    proto, exported = _traced[key]
    return replace(exported, model=ir.from_proto(proto))


class Compiled:
    """A checkpoint's graph for the target, with its entry and files."""

    def __init__(self, spec: SourceSpec, folder: Path, precision: str) -> None:
        self.source = open_source(spec)
        exported = _exported(self.source)
        self.model = attach_weights(exported, self.source.weight)
        self.folder = folder
        request = CompileRequest(folder, precision, LimitsEntry(CONTEXT, 4), exported.caches)
        (self.entry,) = target_of("cuda").compile(self.model, request)

    def logits(self) -> list[np.ndarray]:
        engine = InterpretedEngine(self.model, self.entry)
        engine.resize(4, CONTEXT)
        return _logits(engine)


class OnnxRuntime:
    """The model on ONNX Runtime's CPU provider, with four slots."""

    def __init__(self, model: Path, entry: EngineEntry) -> None:
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        shape = (4, entry.kv.kv_heads, CONTEXT, entry.kv.head_dim)
        names = [f"{kind}_cache.{layer}" for layer in range(entry.kv.layers) for kind in "kv"]
        self._caches = {name: np.zeros(shape, entry.kv.dtype) for name in names}

    def step(self, batch: StepBatch) -> np.ndarray:
        first, ends = int(batch.block_table[0, 0]), batch.past_lengths + batch.new_lengths
        rows = slice(first, first + len(ends))
        longest = max(int(ends.max()), batch.input_ids.shape[1])
        feeds = {
            "input_ids": batch.input_ids,
            "past_lengths": batch.past_lengths,
            "new_lengths": batch.new_lengths,
            "logits_index": batch.logits_index,
            "total_length": np.array(longest, np.int32),
            **{name: cache[rows] for name, cache in self._caches.items()},
        }
        names = [output.name for output in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(None, feeds), strict=True))
        for name, cache in self._caches.items():
            cache[rows] = found[f"{name}.out"]
        return found["logits"]


def _logits(engine: InterpretedEngine | OnnxRuntime) -> list[np.ndarray]:
    """Of each prompt, of the token after each, and of the first prompt in two steps."""
    found = _run(engine, PROMPTS, [0, 0, 0], 0)
    found += _run(engine, [[token] for token in NEXT], list(map(len, PROMPTS)), 0)
    _run(engine, [PROMPTS[0][:4]], [0], 3)
    return found + _run(engine, [PROMPTS[0][4:]], [4], 3)


def _run(
    engine: InterpretedEngine | OnnxRuntime, tokens: list[list[int]], past: list[int], slot: int
) -> list[np.ndarray]:
    """The logits of every new token, a matrix a row."""
    width = max(map(len, tokens))
    ids = np.array([row + [0] * (width - len(row)) for row in tokens], np.int64)
    new = np.array([len(row) for row in tokens], np.int32)
    wanted = [row * width + at for row, count in enumerate(new) for at in range(count)]
    table = np.arange(slot, slot + len(tokens), dtype=np.int32)[:, None]
    batch = StepBatch(ids, new, np.array(past, np.int32), table, np.array(wanted, np.int64))
    return np.split(engine.step(batch).copy(), np.cumsum(new)[:-1])


def _expected(model: Any) -> list[np.ndarray]:
    """What ``_logits`` gives, from a Hugging Face model."""
    rows = []
    for prompt, token in zip(PROMPTS, NEXT, strict=True):
        with torch.no_grad():
            rows.append(model(torch.tensor([[*prompt, token]])).logits[0].numpy())
    return [row[:-1] for row in rows] + [row[-1:] for row in rows] + [rows[0][4:-1]]


def _assert_close(found: list[np.ndarray], expected: list[np.ndarray], precision: str) -> None:
    assert [x.shape for x in found] == [x.shape for x in expected]
    largest = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    assert largest < LARGEST_DIFFERENCE[precision]


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request, make_checkpoint: Callable[..., Path], tmp_path_factory) -> Path:
    config_class, fields = MODELS[request.param]
    config = getattr(transformers, config_class)(**fields)
    return make_checkpoint(tmp_path_factory.mktemp(request.param) / "checkpoint", config)


@pytest.fixture(scope="module")
def llama(make_checkpoint: Callable[..., Path], tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama") / "checkpoint", {})


def _hugging_face(checkpoint: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_values_are_those_of_hugging_face(checkpoint: Path, tmp_path: Path, precision) -> None:
    compiled = Compiled(SourceSpec(path=checkpoint), tmp_path, precision)
    _assert_close(compiled.logits(), _expected(_hugging_face(checkpoint)), precision)


def test_int4_values_are_those_of_the_rounded_weights(llama: Path, tmp_path: Path) -> None:
    compiled = Compiled(SourceSpec(path=llama), tmp_path, "int4")
    model = _hugging_face(llama)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                bits = 8 if "embed" in name or "lm_head" in name else 4
                rounded = quantization.quantize(ArrayWeight(weight.numpy()), bits, 32, name)
                weight.copy_(torch.from_numpy(rounded.dequantize()))
    _assert_close(compiled.logits(), _expected(model), "int4")


def test_int4_blocks_with_offsets_keep_their_values(
    llama: Path, make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    import gguf

    config = json.loads((llama / "config.json").read_text())
    metadata = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
        "vocab_size": config["vocab_size"],
    }
    types = {".weight": gguf.GGMLQuantizationType.Q4_1}
    path = make_gguf(llama, tmp_path / "tiny.gguf", "llama", metadata, types=types)
    compiled = Compiled(SourceSpec(gguf=path), tmp_path, "int4")
    assert [node for node in compiled.model.graph if node.op_type == "ReduceSum"], "by offsets"
    _assert_close(compiled.logits(), _expected(compiled.source.reference_model()), "int4")


@pytest.mark.parametrize(
    ("precision", "half"), [("fp16", "float16"), ("bf16", "bfloat16"), ("int4", "float16")]
)
def test_the_entry_says_what_the_graph_is(llama: Path, tmp_path: Path, precision, half) -> None:
    compiled = Compiled(SourceSpec(path=llama), tmp_path, precision)
    entry = compiled.entry
    tensors = {tensor.name: tensor for tensor in entry.io}
    caches = {f"{kind}_cache.{layer}" for kind in "kv" for layer in (0, 1)}
    small = {"input_ids", "past_lengths", "new_lengths", "logits_index", "total_length"}
    assert set(tensors) == small | caches | {f"{name}.out" for name in caches} | {"logits"}
    assert {tensors[name].dtype for name in caches} == {half}
    assert (tensors["logits"].dtype, tensors["total_length"].shape) == ("float32", ())
    assert (entry.target, entry.plan, entry.kv.dtype) == ("cuda", "cuda", half)
    assert (entry.steps.extend, entry.steps.tokens) == (1, 4096)
    assert not entry.batch_invariant
    nvidia = entry.nvidia
    assert nvidia is not None
    assert nvidia.aliases == {f"{name}.out": name for name in caches}
    assert (nvidia.capabilities, nvidia.later) == (("8.0" if half == "bfloat16" else "7.5",), True)
    assert nvidia.weights_bytes == (tmp_path / "engine" / "weights.bin").stat().st_size


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int4"])
def test_nothing_is_computed_in_float32_or_on_the_host(
    checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    """Weights take two bytes each, and no size is asked of the host, which a CUDA graph forbids."""
    compiled = Compiled(SourceSpec(path=checkpoint), tmp_path, precision)
    graph = compiled.model.graph
    half = ir.DataType.BFLOAT16 if precision == "bf16" else ir.DataType.FLOAT16
    for node in graph:
        assert node.op_type not in ("Shape", "Range", "Size", "NonZero"), node
        if node.op_type in ("FusedMatMul", "GroupQueryAttention", "MatMulNBits"):
            assert node.inputs[0] is not None
            assert node.inputs[0].dtype == half
    large = [value.const_value for value in graph.initializers.values()]
    exact = [tensor.name for tensor in large if tensor and tensor.nbytes > 1024]
    floats = [t.name for t in large if t and t.nbytes > 1024 and t.dtype == ir.DataType.FLOAT]
    assert exact
    assert floats == []


def test_int4_has_blocks_of_32_with_zero_points(llama: Path, tmp_path: Path) -> None:
    compiled = Compiled(SourceSpec(path=llama), tmp_path, "int4")
    products = [node for node in compiled.model.graph if node.op_type == "MatMulNBits"]
    assert len(products) == 2 * 4 + 1
    for node in products:
        assert node.attributes["block_size"].as_int() == 32
        assert "accuracy_level" not in node.attributes
    four = [node for node in products if node.attributes["bits"].as_int() == 4]
    assert len(four) == 2 * 4
    assert all(node.inputs[3] is not None for node in four)


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_onnx_runtime_gives_the_interpreters_values(
    checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    """Its CPU provider runs the model as well, with other kernels than the CUDA provider's.

    Of bfloat16 it has none.
    """
    compiled = Compiled(SourceSpec(path=checkpoint), tmp_path, precision)
    found = _logits(OnnxRuntime(tmp_path / compiled.entry.model, compiled.entry))
    _assert_close(found, compiled.logits(), precision)


def test_a_model_that_computes_sizes_is_refused(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    fields = {**_SMALL, "ffn_dim": 96, "word_embed_proj_dim": 64}
    checkpoint = make_checkpoint(tmp_path / "opt", transformers.OPTConfig(**fields))
    with pytest.raises(UnsupportedModelError, match="on the host"):
        Compiled(SourceSpec(path=checkpoint), tmp_path, "fp16")


def test_the_same_checkpoint_gives_the_same_files(llama: Path, tmp_path: Path) -> None:
    entries: list[EngineEntry] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        entries.append(Compiled(SourceSpec(path=llama), tmp_path / name, "fp16").entry)
    assert entries[0].fingerprint == entries[1].fingerprint
