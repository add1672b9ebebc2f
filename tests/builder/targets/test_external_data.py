"""The two files of a model: what goes where, what is shared, and how little is held."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from enginewright.builder.passes.lower_block_linear import lower_block_linear
from enginewright.builder.passes.quantize import quantize
from enginewright.builder.targets.external_data import WeightsFile
from enginewright.builder.weight_tensor import WeightTensor
from enginewright.builder.weights import ArrayWeight, Weight

_TIED = """
<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1, "enginewright" : 1]>
tied (int64[B] input_ids, float[600, 64] table, float[512, 64] w, float[64, 512] u, float[8] small)
=> (float[B, 600] logits, float[8] same)
{
    e = Gather (table, input_ids)
    h = enginewright.Linear (e, w)
    g = enginewright.Linear (h, u)
    logits = enginewright.Linear (g, table)
    same = Identity (small)
}
"""


class FailingWeight(Weight):
    """A weight whose file can no longer be read."""

    def rows(self, start: int, stop: int):
        raise OSError("stale file handle")


def tied_model():
    model = ir.from_proto(onnx.parser.parse_model(_TIED))
    rng = np.random.default_rng(2)
    for name in ("table", "w", "u", "small"):
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        array = rng.normal(size=tuple(value.shape)).astype(np.float32)
        value.const_value = WeightTensor(ArrayWeight(array), name)
        model.graph.initializers.add(value)
    return model


def save(model, folder):
    folder.mkdir()
    with WeightsFile(folder / "weights.bin") as weights:
        weights.save(model, folder / "model.onnx")
    return external(folder / "model.onnx")


def external(graph_file):
    """Where each tensor of the weights' file lies."""
    proto = onnx.load(graph_file, load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in proto.graph.initializer
    }
    return {name: place for name, place in places.items() if place}


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_the_files_run_as_the_model_in_memory_does(tmp_path, precision):
    model = tied_model()
    quantize(model, precision)
    lower_block_linear(model)
    save(model, tmp_path / "engine")
    ids = {"input_ids": np.array([0, 5, 599])}
    inline = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    saved = onnxruntime.InferenceSession(str(tmp_path / "engine" / "model.onnx"))
    for new, old in zip(saved.run(None, ids), inline.run(None, ids), strict=True):
        assert np.array_equal(new, old)


def test_tied_fp32_table_is_written_once(tmp_path):
    model = tied_model()
    quantize(model, "fp32")
    places = save(model, tmp_path / "engine")
    assert set(places) == {"table", "w", "u"}, "the small tensor stays in the graph"
    assert {place["location"] for place in places.values()} == {"weights.bin"}
    size = (tmp_path / "engine" / "weights.bin").stat().st_size
    assert size == 4 * (600 * 64 + 2 * 512 * 64)


def test_embedding_and_head_read_the_same_bytes(tmp_path):
    model = tied_model()
    quantize(model, "int8")
    places = save(model, tmp_path / "engine")
    assert places["table.table"] == places["table.codes"]
    matrices = (600 + 512 + 512) * 64
    scales = matrices // 32 * 2
    size = (tmp_path / "engine" / "weights.bin").stat().st_size
    assert matrices + scales <= size < matrices + scales + 64 * len(places)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_two_graphs_share_their_weights(tmp_path, precision):
    model = tied_model()
    quantize(model, precision)
    weights_file = tmp_path / "weights.bin"
    with WeightsFile(weights_file) as weights:
        weights.save(model, tmp_path / "native.onnx")
        lower_block_linear(model)
        weights.save(model, tmp_path / "plain.onnx")
    native, plain = (external(tmp_path / f"{name}.onnx") for name in ("native", "plain"))
    for name in ("table", "w", "u"):
        assert native[f"{name}.codes"] == plain[f"{name}.fine_codes"]
        assert native[f"{name}.scales"] == plain[f"{name}.scales"]
    shared, size = weights_file.read_bytes(), weights_file.stat().st_size
    alone = tied_model()
    quantize(alone, precision)
    save(alone, tmp_path / "alone")
    first = (tmp_path / "alone" / "weights.bin").read_bytes()
    assert shared.startswith(first), "the second graph only adds what is not there"
    # Of int4 the zeros of blocks of 16 are the plain graph's own.
    own = 2 * 512 * 64 // 16 // 2 if precision == "int4" else 0
    assert size <= len(first) + own + 64 * 2
    saved = onnxruntime.InferenceSession(str(tmp_path / "plain.onnx"))
    ids = {"input_ids": np.array([0, 5, 599])}
    inline = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    assert np.array_equal(saved.run(None, ids)[0], inline.run(None, ids)[0])


def test_offsets_are_aligned_and_in_the_order_of_use(tmp_path):
    model = tied_model()
    big = model.graph.initializers["w"]
    big.const_value = WeightTensor(ArrayWeight(np.zeros((8192, 64), np.float32)), "w")
    places = save(model, tmp_path / "engine")
    offsets = {name: int(place["offset"]) for name, place in places.items()}
    assert sorted(offsets, key=offsets.__getitem__) == ["table", "w", "u"]
    assert offsets["w"] % 4096 == 0
    assert all(offset % 64 == 0 for offset in offsets.values())


def test_the_same_model_gives_the_same_bytes(tmp_path):
    contents = []
    for turn in ("first", "second"):
        model = tied_model()
        quantize(model, "int4")
        save(model, tmp_path / turn)
        contents.append([p.read_bytes() for p in sorted((tmp_path / turn).iterdir())])
    assert contents[0] == contents[1]


def test_the_model_stays_as_it_was_even_when_a_weight_fails(tmp_path):
    model = tied_model()
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    save(model, tmp_path / "engine")
    assert {n: v.const_value for n, v in model.graph.initializers.items()} == before
    failing = WeightTensor(FailingWeight((512, 64)), "w")
    model.graph.initializers["w"].const_value = failing
    with pytest.raises(OSError, match="stale"):
        save(model, tmp_path / "again")
    assert model.graph.initializers["w"].const_value is failing


class ManyRows(Weight):
    """A large weight that is made as it is read, as one of a checkpoint is mapped."""

    def rows(self, start: int, stop: int):
        return np.random.default_rng(start).random((stop - start, *self.shape[1:]), np.float32)


@pytest.mark.parametrize(
    ("precision", "stored"), [("fp32", 4.0), ("int8", 1 + 2 / 32), ("int4", 0.5 + 2.5 / 32)]
)
def test_memory_stays_far_below_the_size_of_the_weights(tmp_path, precision, stored):
    model = tied_model()
    count = 6
    text = "\n".join(f"y{i} = enginewright.Linear (x, w{i})" for i in range(count))
    parameters = ", ".join(f"float[4096, 1024] w{i}" for i in range(count))
    outputs = ", ".join(f"float[B, 4096] y{i}" for i in range(count))
    header = _TIED.strip().splitlines()[0]
    model = ir.from_proto(
        onnx.parser.parse_model(
            f"{header} many (float[B, 1024] x, {parameters}) "
            f"=> (float[B, 1024] logits, {outputs}) {{ logits = Identity (x) {text} }}"
        )
    )
    for i in range(count):
        value = next(v for v in model.graph.inputs if v.name == f"w{i}")
        model.graph.inputs.remove(value)
        value.const_value = WeightTensor(ManyRows((4096, 1024)), f"w{i}")
        model.graph.initializers.add(value)
    tracemalloc.start()
    try:
        quantize(model, precision)
        save(model, tmp_path / "engine")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    values = count * 4096 * 1024
    assert (tmp_path / "engine" / "weights.bin").stat().st_size == pytest.approx(
        stored * values, rel=0.02
    )
    one_matrix = 4 * 4096 * 1024
    assert peak < 4 * one_matrix
