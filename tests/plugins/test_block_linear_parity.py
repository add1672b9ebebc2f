"""The compiled BlockLinear in ONNX Runtime against its meaning in numpy, with all its kernels.

Each kind of kernels, which the environment asks for, computes all cases in a process of its
own: this file, run as a script.
"""

from __future__ import annotations

import itertools
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginewright.plugins.block_linear import contract
from enginewright.plugins.block_linear.reference import (
    block_linear,
    dequantize,
    round_activations,
)
from enginewright.plugins.rounding import ties_to_even
from enginewright.plugins.row_ops.contract import SWIGLU

BLOCKS_AND_INPUTS = (
    (16, 16),
    (16, 48),
    (16, 208),
    (16, 352),
    (32, 32),
    (32, 96),
    (32, 352),
    (32, 1376),
    (64, 64),
    (64, 320),
    (128, 128),
    (128, 384),
    (256, 512),
)
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 65)
COLUMNS = (1, 5, 33)
Results = dict[str, np.ndarray[Any, Any]]
KERNELS = ("portable", "avx2", "avx2vnni", "avx512", "avx512vnni", "amx")
OTHER_RUNS = ("alone", "two threads", "two threads, alone")


@dataclass(frozen=True)
class Case:
    """One product; all its tensors follow from its fields."""

    bits: int
    block: int
    inputs: int
    half: bool
    zero_points: bool
    zero: int
    offsets: bool
    bias: bool
    columns: int = 5
    shape: tuple[int, ...] = (3,)
    outliers: bool = False
    bfloat16: bool = False

    @property
    def name(self) -> str:
        return repr(self)

    def in_tiles(self, kernels: str) -> bool:
        """Whether those kernels multiply it in tiles of bfloat16."""
        rounds = self.bits == 4 or self.bfloat16
        return kernels == "amx" and rounds and self.inputs % 32 == 0

    def tensors(self) -> Results:
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        blocks = self.inputs // self.block
        kind = np.float16 if self.half else np.float32
        packed = -(-blocks * self.bits // 8)
        found = {
            "codes": self._bytes(rng, self.columns, blocks, self.block * self.bits // 8),
            "scales": rng.normal(0, 0.02, (self.columns, blocks)).astype(kind),
            "zero_points": self._bytes(rng, self.columns, packed),
            "offsets": rng.normal(0, 0.1, (self.columns, blocks)).astype(kind),
            "bias": rng.normal(size=self.columns).astype(np.float32),
        }
        for name in ("zero_points", "offsets", "bias"):
            if not getattr(self, name):
                del found[name]
        return found

    def x(self) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng(zlib.crc32(self.name.encode()) + 1)
        x = rng.normal(size=(*self.shape, self.inputs)).astype(np.float32)
        if self.outliers:
            x[..., rng.integers(0, self.inputs, 2)] *= 3000
        return x

    def model(
        self, spoilt: Results | None = None, then: str | None = None, **attributes: int
    ) -> bytes:
        """The graph of the product, and of an operator of ours after it if there is one."""
        tensors = self.tensors() | (spoilt or {})
        names = [name if name == "x" or name in tensors else "" for name in contract.INPUTS]
        given = {"N": self.columns, "K": self.inputs, "bits": self.bits}
        given |= {"block_size": self.block, "zero": self.zero}
        given |= {contract.BFLOAT16: int(self.bfloat16)} | attributes
        made = "y" if then is None else "product"
        nodes = [helper.make_node(contract.OP_TYPE, names, [made], domain=contract.DOMAIN, **given)]
        if then is not None:
            nodes.append(helper.make_node(then, [made], ["y"], domain=contract.DOMAIN))
        rank = len(self.shape) + 1
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "one",
            [value("x", TensorProto.FLOAT, [None] * rank)],
            [value("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in tensors.items()],
        )
        opsets = [
            helper.make_opsetid("", 20),
            helper.make_opsetid(contract.DOMAIN, contract.ABI_VERSION),
        ]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()

    @staticmethod
    def _bytes(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
        return rng.integers(0, 256, shape, np.uint8)


def swept() -> Iterator[Case]:
    rows, columns = itertools.cycle(ROWS), itertools.cycle(COLUMNS)
    outliers = itertools.cycle([False, True, False, False])
    kinds = ((4, False), (8, False), (8, True))
    for (bits, bfloat16), (block, inputs) in itertools.product(kinds, BLOCKS_AND_INPUTS):
        zeros = (0, 1 << (bits - 1))
        for half, points, zero, offsets, bias in itertools.product(
            (True, False), (True, False), zeros, (True, False), (True, False)
        ):
            yield Case(
                bits,
                block,
                inputs,
                half,
                points,
                zero,
                offsets,
                bias,
                next(columns),
                (next(rows),),
                next(outliers),
                bfloat16,
            )


CASES = {case.name: case for case in swept()}
TALL = {
    case.name: case
    for case in (
        Case(4, 32, 576, True, False, 0, True, True, 600, (1100,)),
        Case(4, 256, 4864, False, True, 8, False, False, 500, (600,)),
        Case(8, 32, 576, True, False, 128, False, False, 600, (1100,), bfloat16=True),
        Case(8, 128, 4864, False, True, 0, True, True, 500, (600,), bfloat16=True),
    )
}
"""More rows, and elements of a row, than are taken at a time."""
TALL_COUNTS = (1, 16, 17, 32, 33, 48, 513)

GATED = {
    f"gated {case.name}": case
    for (bits, bfloat16), (block, inputs, columns, rows) in itertools.product(
        ((4, False), (8, False), (8, True)),
        ((16, 48, 2, 1), (32, 352, 10, 5), (64, 320, 66, 33), (32, 576, 1100, 300)),
    )
    for case in (
        Case(bits, block, inputs, True, False, 1, True, True, columns, (rows,), bfloat16=bfloat16),
    )
}


def session(library: Path, model: bytes, threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = session.run(None, {"x": x})[0]
    return result


SPECIAL = {
    str(i): Case(bits, 32, 96, True, True, 0, True, True, 33, (9,), bfloat16=bfloat16)
    for i, (bits, bfloat16) in enumerate(((4, False), (8, False), (8, True)))
}


def special_rows(case: Case) -> np.ndarray[Any, Any]:
    """Rows that are nearly or wholly no numbers, each beside ordinary ones."""
    x = case.x()
    x[1] = 0
    x[2] *= np.float32(1e-38)
    x[3, 40] = np.nan
    x[5, 95] = np.inf
    x[6] *= np.float32(1e-20)
    x[7] *= np.float32(1e30)
    x[8, 16:32] = 0
    return x


def compute(library: Path) -> Results:
    """The results of all cases by name, and of their other runs."""
    found = {}
    for name, case in CASES.items():
        one, two = (session(library, case.model(), threads) for threads in (1, 2))
        x = case.x()
        found[name] = run(one, x)
        apart = [x[row : row + 1] for row in range(len(x))]
        found[f"{name} alone"] = np.concatenate([run(one, row) for row in apart])
        found[f"{name} two threads"] = run(two, x)
        found[f"{name} two threads, alone"] = np.concatenate([run(two, row) for row in apart])
    for name, case in SPECIAL.items():
        found[f"special {name}"] = run(session(library, case.model()), special_rows(case))
    for name, case in TALL.items():
        two, x = session(library, case.model(), 2), case.x()
        found[name] = run(two, x)
        for count in TALL_COUNTS:
            found[f"{name} {count}"] = run(two, x[:count])
    for name, case in GATED.items():
        x, gated = case.x(), case.model(gated=1)
        found[f"{name} apart"] = run(session(library, case.model(then=SWIGLU)), x)
        found[name] = run(session(library, gated), x)
        two = session(library, gated, 2)
        found[f"{name} two threads"] = run(two, x)
        found[f"{name} two threads, alone"] = np.concatenate([run(two, row[None]) for row in x])
    return found


def expected(
    case: Case, x: np.ndarray[Any, Any], kernels: str = ""
) -> tuple[np.ndarray[Any, Any], Any]:
    """What the reference gives, and how far float32 sums may be from it.

    Kernels sum codes and zeros apart, so what is summed is larger than the result.
    """
    tensors = case.tensors()
    bias = tensors.pop("bias", None)
    tiles = case.in_tiles(kernels)
    y = block_linear(x, **tensors, bias=bias, bits=case.bits, zero=case.zero, tiles=tiles)
    apart = {name: np.abs(array) for name, array in tensors.items() if name != "zero_points"}
    magnitude = dequantize(**apart, bits=case.bits, zero=-(1 << case.bits))
    summed = np.abs(round_activations(x, case.bits)) @ magnitude.T
    return y, 1e-6 * (summed + (0 if bias is None else np.abs(bias)))


@pytest.mark.parametrize(("bits", "count"), [(4, 32), (8, 64)])
@pytest.mark.parametrize(("block", "inputs"), BLOCKS_AND_INPUTS)
def test_products_are_those_of_the_reference(computed, cpu_kernels, bits, count, block, inputs):
    cases = [c for c in CASES.values() if (c.bits, c.block, c.inputs) == (bits, block, inputs)]
    assert len(cases) == count
    for case in cases:
        y, tolerance = expected(case, case.x(), cpu_kernels)
        found = computed[case.name]
        assert found.shape == y.shape
        assert found.dtype == np.float32
        assert (np.abs(found - y) <= tolerance).all(), case


@pytest.mark.parametrize("other", OTHER_RUNS)
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads(computed, other):
    differing = [n for n in CASES if not np.array_equal(computed[n], computed[f"{n} {other}"])]
    assert not differing


@pytest.mark.parametrize("name", SPECIAL)
def test_rows_that_are_no_ordinary_numbers(computed, cpu_kernels, name):
    case, x = SPECIAL[name], special_rows(SPECIAL[name])
    found = computed[f"special {name}"]
    with np.errstate(invalid="ignore"):
        y, tolerance = expected(case, x, cpu_kernels)
    bias = case.tensors()["bias"]
    assert np.isnan(found[3]).all()
    assert np.isnan(y[3]).all()
    assert (np.isnan(found[5]) | (case.in_tiles(cpu_kernels) & np.isinf(found[5]))).all()
    others = [0, 1, 2, 4, 6, 7, 8]
    assert (np.abs(found[others] - y[others]) <= tolerance[others]).all()
    assert np.array_equal(found[1], bias)
    assert np.array_equal(found[2], bias), "too small to count"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("offsets", [False, True])
def test_what_tiles_make_of_weights_is_as_near_as_rounding_makes_it(bits, offsets):
    case = Case(bits, 32, 1376, True, False, 1 << (bits - 1), offsets, False, 33)
    given = {**case.tensors(), "bits": bits, "zero": case.zero}
    x = np.eye(case.inputs, dtype=np.float32)
    weight, made = (block_linear(x, **given, tiles=tiles) for tiles in (False, True))
    large = np.abs(weight) > np.abs(weight).max() / 1000  # float32 sums count beside lesser ones
    relative = made[large] / weight[large] - 1
    rounded = ties_to_even(weight[large].astype(np.float32)) / weight[large] - 1
    assert np.abs(relative).max() < 0.0052
    assert np.sqrt((relative**2).mean()) < 1.1 * np.sqrt((rounded**2).mean())
    assert abs(relative.mean()) < 5e-4
    if not offsets:
        assert (made[weight == 0] == 0).all()
        assert (weight == 0).any()


@pytest.mark.parametrize("name", TALL)
def test_many_rows(computed, cpu_kernels, name):
    case, x = TALL[name], TALL[name].x()
    y, tolerance = expected(case, x, cpu_kernels)
    assert (np.abs(computed[name] - y) <= tolerance).all()
    for count in TALL_COUNTS:
        assert np.array_equal(computed[f"{name} {count}"], computed[name][:count]), count


@pytest.mark.parametrize("name", GATED)
def test_a_gate_has_the_bits_of_the_product_and_the_activation_apart(computed, cpu_kernels, name):
    case, apart = GATED[name], computed[f"{name} apart"]
    assert apart.shape == (*case.shape, case.columns // 2)
    for run_as in ("", " two threads", " two threads, alone"):
        assert np.array_equal(computed[f"{name}{run_as}"], apart), run_as
    tensors, tiles = case.tensors(), case.in_tiles(cpu_kernels)
    given = {"bits": case.bits, "zero": case.zero, "tiles": tiles, "gated": True}
    assert np.allclose(apart, block_linear(case.x(), **tensors, **given), rtol=1e-3, atol=1e-3)


def test_what_tiles_do_not_take_has_the_bits_of_other_kernels(compute_with):
    found, narrow = compute_with("amx"), compute_with("avx2")
    others = [name for name, case in CASES.items() if not case.in_tiles("amx")]
    assert 0 < len(others) < len(CASES)
    assert [name for name in others if not np.array_equal(found[name], narrow[name])] == []


def test_the_environment_chooses_the_kernels(compute_with):
    found, portable = compute_with("avx2"), compute_with("portable")
    differing = [name for name in CASES if not np.array_equal(found[name], portable[name])]
    assert differing, "they sum in another order"


@pytest.mark.parametrize("wider", ["avx2vnni", "avx512", "avx512vnni"])
def test_other_instructions_give_the_same_bits(compute_with, wider):
    found, narrow = compute_with(wider), compute_with("avx2")
    assert [name for name in CASES if not np.array_equal(found[name], narrow[name])] == []


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 0), (1, 1, 1)])
def test_x_of_any_rank(library, bits, shape):
    case = Case(bits, 16, 48, True, False, 3, True, False, 5, shape)
    y, tolerance = expected(case, case.x())
    found = run(session(library, case.model()), case.x())
    assert found.shape == (*shape, 5)
    assert (np.abs(found - y) <= tolerance).all()


@pytest.mark.parametrize(("bits", "error"), [(4, 0.006), (8, 5e-5)])
def test_rounding_of_ordinary_activations_costs_little(bits, error):
    x = np.random.default_rng(4).normal(size=(65, 512)).astype(np.float32)
    lost = round_activations(x, bits) - x
    assert np.sqrt((lost**2).mean()) < error
    assert np.abs(lost).max() <= np.abs(x).max() * (1 / 254 if bits == 4 else 1 / 65534) * 1.001


def test_against_4_bits_an_outlier_costs_its_own_group_alone():
    x = np.random.default_rng(4).normal(size=(65, 512)).astype(np.float32)
    ordinary = round_activations(x, 4) - x
    x[:, 100] = 3000
    lost = round_activations(x, 4) - x
    group = slice(96, 112)
    assert np.sqrt((lost[:, group] ** 2).mean()) > 0.5, "16 values share an integer"
    assert np.sqrt((np.delete(lost, range(96, 112), 1) ** 2).mean()) < 2 * ordinary.std()


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_size": 24},
        {"block_size": 8},
        {"block_size": 32},
        {"bits": 3},
        {"bits": 0},
        {"zero": 16},
        {"N": 0},
        {"K": -48},
        {"gated": 1},
        {"gated": 2},
    ],
    ids=str,
)
def test_wrong_attributes_are_refused(library, wrong):
    case = Case(4, 16, 48, True, False, 8, False, False)
    with pytest.raises(Exception, match="BlockLinear: N and K must be positive"):
        session(library, case.model(**wrong))


def test_a_wrong_last_axis_is_refused(library):
    case = Case(8, 16, 48, True, False, 128, False, False)
    opened = session(library, case.model())
    with pytest.raises(Exception, match="last axis of x is not K"):
        run(opened, np.zeros((2, 64), np.float32))
    x = case.x()
    assert (np.abs(run(opened, x) - expected(case, x)[0]) < 1e-2).all(), "and runs on"


@pytest.mark.parametrize("name", ["codes", "scales", "zero_points", "offsets", "bias"])
@pytest.mark.parametrize("longer", [False, True])
def test_tensors_of_another_size_are_refused_and_not_read(library, name, longer):
    case = Case(8, 16, 4096, True, True, 128, True, True, 1000)
    array = case.tensors()[name]
    spoilt = np.concatenate([array, array[:1]]) if longer else array[:1]
    opened = session(library, case.model(spoilt={name: spoilt}))
    with pytest.raises(Exception, match="the size of an input"):
        run(opened, case.x())


def test_offsets_of_another_type_than_scales_are_refused(library):
    case = Case(8, 16, 48, False, True, 128, True, True)
    offsets = case.tensors()["offsets"].astype(np.float16)
    opened = session(library, case.model(spoilt={"offsets": offsets}))
    with pytest.raises(Exception, match="both float16 or both float32"):
        run(opened, case.x())


if __name__ == "__main__":
    np.savez(sys.argv[2], **compute(Path(sys.argv[1])))  # type: ignore[arg-type]
