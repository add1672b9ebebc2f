"""GPTQ and AWQ of 4 bits: packed here by the published layouts, read back exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source import Source, open_source
from enginewright.builder.source.int4 import Int4Weight
from enginewright.runtime.errors import SourceError, UnsupportedModelError

Make = Callable[..., Path]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}
MODULE = "model.layers.1.mlp.gate_proj"


@dataclass(frozen=True)
class Quantized:
    """A matrix [N, K] in 4 bits: codes [N, K], scales and zeros [G, N], groups [K]."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8]
    groups: NDArray[np.int32]

    def values(self) -> NDArray[np.float32]:
        values = np.empty(self.codes.shape, np.float32)
        for n in range(values.shape[0]):
            for k in range(values.shape[1]):
                g = self.groups[k]
                difference = np.float32(int(self.codes[n, k]) - int(self.zeros[g, n]))
                values[n, k] = np.float32(self.scales[g, n]) * difference
        return values


def random(rows: int, inputs: int, size: int, *, mixed: bool = False) -> Quantized:
    rng = np.random.default_rng(rows * 1000 + inputs)
    count = 1 if size == -1 else inputs // size
    groups = np.arange(inputs, dtype=np.int32) // (inputs if size == -1 else size)
    return Quantized(
        rng.integers(0, 16, (rows, inputs), np.uint8),
        rng.uniform(0.01, 0.1, (count, rows)).astype(np.float16),
        rng.integers(0, 16, (count, rows), np.uint8),
        rng.permutation(groups) if mixed else groups,
    )


def words_of(nibbles: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Eight nibbles along the last axis, the first in the lowest bits -> one word."""
    shifted = [nibbles[..., i].astype(np.uint32) << np.uint32(4 * i) for i in range(8)]
    return np.bitwise_or.reduce(shifted).view(np.int32)


def gptq_tensors(matrix: Quantized, offset: int = 1) -> dict[str, NDArray[Any]]:
    rows, inputs = matrix.codes.shape
    words = words_of(matrix.codes.T.reshape(inputs // 8, 8, rows).swapaxes(1, 2))
    zeros = (matrix.zeros.astype(np.int64) - offset) % 16
    packed = words_of(zeros.astype(np.uint8).reshape(-1, rows // 8, 8))
    return {"qweight": words, "qzeros": packed, "scales": matrix.scales, "g_idx": matrix.groups}


def awq_tensors(matrix: Quantized) -> dict[str, NDArray[Any]]:
    rows, inputs = matrix.codes.shape
    interleaved = [0, 2, 4, 6, 1, 3, 5, 7]  # the i-th nibble of a word holds this output
    codes = matrix.codes.T.reshape(inputs, rows // 8, 8)[..., interleaved]
    zeros = matrix.zeros.reshape(-1, rows // 8, 8)[..., interleaved]
    return {"qweight": words_of(codes), "qzeros": words_of(zeros), "scales": matrix.scales}


Pack = Callable[[Quantized], Mapping[str, NDArray[Any]]]


@pytest.fixture(scope="module")
def plain(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 48}
    return make_checkpoint(tmp_path_factory.mktemp("plain"), sizes)


def quantize(
    plain: Path, folder: Path, settings: Mapping[str, Any], pack: Pack, *, mixed: bool = False
) -> dict[str, Quantized]:
    """Write the checkpoint with every linear layer but the head packed; returns what was packed."""
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    tensors, packed = {}, {}
    size = settings.get("group_size", settings.get("q_group_size", 16))
    for name, tensor in load_file(plain / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if not module.endswith("_proj"):
            tensors[name] = tensor
            continue
        packed[module] = random(*tensor.shape, size, mixed=mixed)
        for part, array in pack(packed[module]).items():
            tensors[f"{module}.{part}"] = np.ascontiguousarray(array)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return packed


def opened(folder: Path) -> Source:
    return open_source(SourceSpec(path=folder))


CASES = [
    pytest.param(GPTQ, gptq_tensors, id="gptq"),
    pytest.param({**GPTQ, "group_size": -1}, gptq_tensors, id="gptq-one-group"),
    pytest.param(
        {**GPTQ, "checkpoint_format": "gptq_v2"}, lambda m: gptq_tensors(m, 0), id="gptq-v2"
    ),
    pytest.param(AWQ, awq_tensors, id="awq"),
    pytest.param({**AWQ, "group_size": -1, "version": "GEMM"}, awq_tensors, id="awq-one-group"),
    pytest.param(
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 8}, awq_tensors, id="awq-old-keys"
    ),
]


@pytest.mark.parametrize(("settings", "pack"), CASES)
def test_values_and_blocks_are_exact(
    plain: Path, tmp_path: Path, settings: dict[str, Any], pack: Pack
) -> None:
    packed = quantize(plain, tmp_path, settings, pack)
    source = opened(tmp_path)
    assert "quantization_config" not in source.config
    for module, matrix in packed.items():
        weight = source.weight(f"{module}.weight")
        values = matrix.values()
        np.testing.assert_array_equal(weight.numpy(), values)
        np.testing.assert_array_equal(weight.rows(3, 13), values[3:13])
        blocks = weight.blocks()
        assert blocks is not None
        assert blocks.bits == 4
        assert blocks.block_size == matrix.codes.shape[1] // matrix.scales.shape[0]
        np.testing.assert_array_equal(blocks.codes(), matrix.codes)
        np.testing.assert_array_equal(blocks.dequantize(), values)
        assert f"{module}.qweight" not in source.weights
    assert source.weight("lm_head.weight").blocks() is None


def test_symmetric_gptq_has_its_zero_in_the_middle(plain: Path, tmp_path: Path) -> None:
    def symmetric(matrix: Quantized) -> dict[str, NDArray[Any]]:
        middle = Quantized(
            matrix.codes, matrix.scales, np.full_like(matrix.zeros, 8), matrix.groups
        )
        tensors = gptq_tensors(middle)
        assert (tensors["qzeros"] == 0x77777777).all()
        return tensors

    quantize(plain, tmp_path, {**GPTQ, "sym": True}, symmetric)
    blocks = opened(tmp_path).weight(f"{MODULE}.weight").blocks()
    assert blocks is not None
    assert blocks.zero_points is not None
    assert (blocks.zero_points == 8).all()


def test_gptq_without_g_idx_has_its_groups_in_order(plain: Path, tmp_path: Path) -> None:
    def bare(matrix: Quantized) -> dict[str, NDArray[Any]]:
        return {k: v for k, v in gptq_tensors(matrix).items() if k != "g_idx"}

    packed = quantize(plain, tmp_path, GPTQ, bare)
    weight = opened(tmp_path).weight(f"{MODULE}.weight")
    np.testing.assert_array_equal(weight.numpy(), packed[MODULE].values())


def test_gptq_by_activation_order(plain: Path, tmp_path: Path) -> None:
    packed = quantize(plain, tmp_path, {**GPTQ, "desc_act": True}, gptq_tensors, mixed=True)
    source = opened(tmp_path)
    for module, matrix in packed.items():
        weight = source.weight(f"{module}.weight")
        np.testing.assert_array_equal(weight.numpy(), matrix.values())
        assert weight.blocks() is None
        assert isinstance(weight, Int4Weight)
        ordered = weight.ordered_blocks()
        assert ordered is not None
        blocks, order = ordered
        np.testing.assert_array_equal(blocks.dequantize(), matrix.values()[:, order])


def test_a_short_last_group_is_exact_but_has_no_blocks(plain: Path, tmp_path: Path) -> None:
    def short(matrix: Quantized) -> dict[str, NDArray[Any]]:
        inputs = matrix.codes.shape[1]
        count = -(-inputs // 20)
        groups = np.arange(inputs, dtype=np.int32) // 20
        scales = np.resize(matrix.scales, (count, matrix.codes.shape[0]))
        zeros = np.resize(matrix.zeros, scales.shape)
        made[matrix.codes.shape] = Quantized(matrix.codes, scales, zeros, groups)
        return gptq_tensors(made[matrix.codes.shape])

    made: dict[tuple[int, ...], Quantized] = {}
    quantize(plain, tmp_path, {**GPTQ, "group_size": 20}, short)
    weight = opened(tmp_path).weight(f"{MODULE}.weight")
    np.testing.assert_array_equal(weight.numpy(), made[weight.shape].values())
    assert weight.blocks() is None


@pytest.mark.parametrize(("settings", "pack"), CASES[:1] + CASES[3:4])
def test_the_reference_computes_with_exactly_these_weights(
    plain: Path, tmp_path: Path, settings: dict[str, Any], pack: Pack
) -> None:
    packed = quantize(plain, tmp_path, settings, pack)
    model = opened(tmp_path).reference_model()
    assert not model.training
    found = dict(model.named_parameters())
    assert found["lm_head.weight"].detach().numpy().std() > 0
    for module, matrix in packed.items():
        np.testing.assert_array_equal(found[f"{module}.weight"].detach().numpy(), matrix.values())
    config = transformers.AutoConfig.from_pretrained(plain)
    unquantized = transformers.AutoModelForCausalLM.from_pretrained(plain, config=config)
    for name, buffer in unquantized.named_buffers():
        np.testing.assert_array_equal(dict(model.named_buffers())[name].numpy(), buffer.numpy())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({**GPTQ, "bits": 8}, "gptq of 8 bits; only 4"),
        ({**AWQ, "bits": None}, "awq of None bits; only 4"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({**GPTQ, "dynamic": {"+:.*mlp.*": {"bits": 8}}}, "dynamic"),
        ({**AWQ, "version": "gemv"}, "layout 'gemv'"),
        ({**AWQ, "format": "marlin"}, "layout 'marlin'"),
    ],
)
def test_other_forms_are_refused_by_name(
    plain: Path, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    quantize(plain, tmp_path, settings, gptq_tensors)
    with pytest.raises(UnsupportedModelError, match=problem.replace("+", r"\+")):
        opened(tmp_path)


def test_modules_left_out_by_dynamic_are_no_obstacle(plain: Path, tmp_path: Path) -> None:
    quantize(plain, tmp_path, {**GPTQ, "dynamic": {"-:lm_head": {}}}, gptq_tensors)
    assert opened(tmp_path).weight(f"{MODULE}.weight").blocks() is not None


@pytest.mark.parametrize("size", [0, -2, "all", None])
def test_an_impossible_group_size(plain: Path, tmp_path: Path, size: Any) -> None:
    quantize(plain, tmp_path, GPTQ, gptq_tensors)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["group_size"] = size
    path.write_text(json.dumps(config))
    with pytest.raises(SourceError, match="group_size"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop(f"{MODULE}.scales"), "scales is missing"),
        (lambda t: t.pop(f"{MODULE}.qzeros"), "qzeros is missing"),
        (lambda t: t.update({f"{MODULE}.scales": t[f"{MODULE}.scales"][:1]}), "scales is float16"),
        (lambda t: t.update({f"{MODULE}.g_idx": t[f"{MODULE}.g_idx"] + 5}), "names groups outside"),
        (
            lambda t: t.update({f"{MODULE}.qweight": t[f"{MODULE}.qweight"].astype(np.int64)}),
            "qweight is int64",
        ),
        (
            lambda t: t.update({f"{MODULE}.qweight": t[f"{MODULE}.qweight"][:0]}),
            r"qweight is int32\[0, 48\]",
        ),
    ],
)
def test_arrays_that_do_not_fit_together(
    plain: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], problem: str
) -> None:
    quantize(plain, tmp_path, GPTQ, gptq_tensors)
    path = tmp_path / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(SourceError, match=problem):
        opened(tmp_path)
