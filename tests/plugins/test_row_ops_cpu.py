"""The compiled AddRMSNorm and SwiGLU in ONNX Runtime against their meaning in numpy.

Each kind of kernels, which the environment asks for, computes all cases in a process of its
own: this file, run as a script.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from enginewright.plugins.row_ops.contract import ABI_VERSION, ADD_RMS_NORM, DOMAIN, SWIGLU
from enginewright.plugins.row_ops.reference import add_rms_norm, swiglu

Arrays = dict[str, np.ndarray[Any, Any]]

KERNELS = ("portable", "avx2", "avx512")
WIDTHS = (1, 3, 4, 7, 8, 15, 16, 17, 31, 576, 1000)
SHAPES = ((1,), (3, 5), (2, 9000))
EPSILON = 1e-5
SPECIAL = np.array(
    [0.0, -0.0, 88.0, -88.0, 1e30, -1e30, np.inf, -np.inf, np.nan, 1e-40], np.float32
)


def model(node: Any, inputs: dict[str, int], outputs: tuple[str, ...]) -> bytes:
    """One node over float32 tensors; ``inputs``: their ranks."""
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "rows",
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name, rank in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, ABI_VERSION)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


def norm_model(
    rank: int, outputs: tuple[str, ...] = ("normed", "total"), **attributes: Any
) -> bytes:
    attributes = attributes or {"epsilon": EPSILON}
    node = helper.make_node(
        ADD_RMS_NORM, ["x", "y", "weight"], list(outputs), domain=DOMAIN, **attributes
    )
    return model(node, {"x": rank, "y": rank, "weight": 1}, outputs)


def swiglu_model(rank: int) -> bytes:
    node = helper.make_node(SWIGLU, ["gate_up"], ["out"], domain=DOMAIN)
    return model(node, {"gate_up": rank}, ("out",))


def session(library: Path, made: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])


def cases() -> dict[str, Arrays]:
    """The inputs of both operators, by name."""
    found = {}
    for shape in SHAPES:
        for width in (*WIDTHS[-2:],) if shape[-1] > 1000 else WIDTHS:
            rng = np.random.default_rng(width + shape[-1])
            full = (*shape, width)
            found[f"{full}"] = {
                "x": rng.normal(size=full).astype(np.float32),
                "y": rng.normal(size=full).astype(np.float32) * 3,
                "weight": rng.normal(size=width).astype(np.float32),
                "gate_up": rng.normal(size=(*shape, 2 * width)).astype(np.float32) * 4,
            }
    return found


def compute(library: Path) -> Arrays:
    """The results of all cases by name, and of their rows alone."""
    found: Arrays = {}
    for name, case in cases().items():
        rank = case["x"].ndim
        norm, gated = session(library, norm_model(rank)), session(library, swiglu_model(rank))
        feeds = {key: case[key] for key in ("x", "y", "weight")}
        found[f"{name} normed"], found[f"{name} total"] = norm.run(None, feeds)
        found[f"{name} out"] = gated.run(None, {"gate_up": case["gate_up"]})[0]
        row = {key: value[..., -1:, :] if value.ndim > 1 else value for key, value in case.items()}
        alone = {key: row[key] for key in ("x", "y", "weight")}
        found[f"{name} normed alone"] = norm.run(None, alone)[0]
        found[f"{name} out alone"] = gated.run(None, {"gate_up": row["gate_up"]})[0]
    ones = np.ones_like(SPECIAL)
    gate_up = np.concatenate([SPECIAL, ones])[None]
    found["special out"] = session(library, swiglu_model(2)).run(None, {"gate_up": gate_up})[0]
    return found


def test_results_are_those_of_the_reference(computed):
    for name, case in cases().items():
        normed, total = add_rms_norm(case["x"], case["y"], case["weight"], EPSILON)
        np.testing.assert_array_equal(computed[f"{name} total"], total, err_msg=name)
        np.testing.assert_allclose(computed[f"{name} normed"], normed, 2e-6, 1e-9, err_msg=name)
        out = swiglu(case["gate_up"])
        np.testing.assert_allclose(computed[f"{name} out"], out, 1e-6, 1e-9, err_msg=name)


def test_a_row_has_the_same_bits_in_any_batch(computed):
    for name in cases():
        for output in ("normed", "out"):
            in_batch, alone = computed[f"{name} {output}"], computed[f"{name} {output} alone"]
            np.testing.assert_array_equal(in_batch[..., -1:, :], alone, err_msg=name)


def test_numbers_that_are_not_ordinary(computed):
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = swiglu(np.concatenate([SPECIAL, np.ones_like(SPECIAL)])[None])
    np.testing.assert_allclose(computed["special out"], wanted, 1e-6, 1e-36)


def test_wider_registers_give_the_same_bits(arrays_of):
    found, narrow = arrays_of(__file__, "avx512"), arrays_of(__file__, "avx2")
    assert [name for name in found if not np.array_equal(found[name], narrow[name], True)] == []


def test_the_sum_may_be_left_out(library):
    case = cases()["(3, 5, 576)"]
    feeds = {key: case[key] for key in ("x", "y", "weight")}
    both = session(library, norm_model(3)).run(None, feeds)
    (alone,) = session(library, norm_model(3, ("normed",))).run(None, feeds)
    np.testing.assert_array_equal(alone, both[0])


def test_no_rows_give_no_rows(library):
    gated = session(library, swiglu_model(2))
    assert gated.run(None, {"gate_up": np.empty((0, 8), np.float32)})[0].shape == (0, 4)


@pytest.mark.parametrize("width", [4, 6])
def test_sizes_that_do_not_agree_are_refused(library, width):
    x, weight = np.ones((2, 5), np.float32), np.ones(width, np.float32)
    with pytest.raises(Exception, match="AddRMSNorm: x and y must be alike"):
        session(library, norm_model(2)).run(None, {"x": x, "y": x, "weight": weight})


def test_half_a_gate_is_refused(library):
    with pytest.raises(Exception, match="SwiGLU: the last axis"):
        session(library, swiglu_model(2)).run(None, {"gate_up": np.ones((2, 5), np.float32)})


def test_a_norm_without_its_epsilon_is_refused(library):
    with pytest.raises(Exception, match="epsilon must be given"):
        session(library, norm_model(2, epsilon=-1.0))


if __name__ == "__main__":
    np.savez(sys.argv[2], **compute(Path(sys.argv[1])))  # type: ignore[arg-type]
