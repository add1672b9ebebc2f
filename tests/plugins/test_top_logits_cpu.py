"""The compiled TopLogits in ONNX Runtime against its meaning in numpy.

Each kind of kernels computes all cases in a process of its own: this file, run as a script.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from enginewright.plugins.row_ops.contract import ABI_VERSION, DOMAIN, TOP_LOGITS
from enginewright.plugins.row_ops.reference import top_logits

Arrays = dict[str, np.ndarray[Any, Any]]

KERNELS = ("portable", "avx2", "avx512")
OUTPUTS = ("top_logits", "top_ids", "log_normalizer")
SIZES = ((1, 1), (3, 3), (17, 5), (64, 64), (65, 64), (1000, 256), (4099, 64), (49152, 64))
"""V and k."""


def session(library: Path, k: int) -> Any:
    value, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    node = helper.make_node(TOP_LOGITS, ["logits"], list(OUTPUTS), domain=DOMAIN, k=k)
    shapes = (kind, [None, None]), (TensorProto.INT32, [None, None]), (kind, [None])
    outputs = [value(name, *shape) for name, shape in zip(OUTPUTS, shapes, strict=True)]
    graph = helper.make_graph([node], "top", [value("logits", kind, [None, None])], outputs)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, ABI_VERSION)]
    data = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def logits_of(vocab_size: int) -> np.ndarray[Any, Any]:
    """Rows of many kinds: spread, flat, in order, with many equals."""
    rng = np.random.default_rng(vocab_size)
    spread = rng.normal(size=(3, vocab_size)) * np.array([[1.0], [8.0], [1e4]])
    rising = np.linspace(-5, 5, vocab_size)
    few = rng.integers(0, 3, vocab_size)
    rows = [*spread, np.zeros(vocab_size), rising, rising[::-1], few, -few]
    return np.array(rows, np.float32)


def spoilt(bad: float) -> np.ndarray[Any, Any]:
    """Row 1 has one such value, row 2 only three others, row 3 none."""
    logits = logits_of(1000)
    logits[1, 500] = bad
    logits[2, 3:] = bad
    logits[3] = bad
    return logits


def highest_numbers(row: np.ndarray[Any, Any], k: int) -> tuple[list[float], list[int]]:
    """Logits and ids, NaN passed over, -inf and 0 where there are no more."""
    ids = [int(at) for at in np.argsort(-row, kind="stable") if not np.isnan(row[at])][:k]
    short = k - len(ids)
    return [float(row[at]) for at in ids] + [-np.inf] * short, ids + [0] * short


def compute(library: Path) -> Arrays:
    """The results of all cases by name, and of their rows alone."""
    found: Arrays = {}
    for vocab_size, k in SIZES:
        logits, opened = logits_of(vocab_size), session(library, k)
        for name, made in zip(OUTPUTS, opened.run(None, {"logits": logits}), strict=True):
            found[f"{vocab_size} {name}"] = made
        alone = [opened.run(None, {"logits": row[None]}) for row in logits]
        for at, name in enumerate(OUTPUTS):
            found[f"{vocab_size} {name} alone"] = np.concatenate([row[at] for row in alone])
    for bad in (np.nan, np.inf, -np.inf):
        for name, made in zip(
            OUTPUTS, session(library, 8).run(None, {"logits": spoilt(bad)}), strict=True
        ):
            found[f"{bad} {name}"] = made
    return found


@pytest.mark.parametrize(("vocab_size", "k"), SIZES)
def test_results_are_those_of_the_reference(computed, vocab_size, k):
    logits, ids, normalizer = top_logits(logits_of(vocab_size), k)
    np.testing.assert_array_equal(computed[f"{vocab_size} top_logits"], logits)
    np.testing.assert_array_equal(computed[f"{vocab_size} top_ids"], ids)
    assert computed[f"{vocab_size} top_ids"].dtype == np.int32
    found = computed[f"{vocab_size} log_normalizer"]
    np.testing.assert_allclose(found, normalizer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("vocab_size", [vocab_size for vocab_size, _ in SIZES])
def test_a_row_has_the_same_bits_in_any_batch(computed, vocab_size, name):
    in_batch, alone = computed[f"{vocab_size} {name}"], computed[f"{vocab_size} {name} alone"]
    np.testing.assert_array_equal(in_batch, alone)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_what_is_not_finite_has_no_finite_normalizer(computed, bad):
    found, rows = computed[f"{bad} log_normalizer"], spoilt(bad)
    assert not np.isfinite(found[1:4]).any()
    others = [0, *range(4, len(rows))]
    np.testing.assert_allclose(found[others], top_logits(rows[others], 8)[2], rtol=1e-6, atol=1e-6)
    for row, logits, ids in zip(
        rows, computed[f"{bad} top_logits"], computed[f"{bad} top_ids"], strict=True
    ):
        assert (logits.tolist(), ids.tolist()) == highest_numbers(row, 8)


def test_rows_of_nothing_but_nan(library):
    logits = np.full((2, 300), np.nan, np.float32)
    _, ids, normalizer = session(library, 4).run(None, {"logits": logits})
    assert not np.isfinite(normalizer).any()
    assert not ids.any()


def test_no_rows_give_no_rows(library):
    found = session(library, 4).run(None, {"logits": np.empty((0, 8), np.float32)})
    assert [array.shape for array in found] == [(0, 4), (0, 4), (0,)]


@pytest.mark.parametrize("k", [0, -1, 257])
def test_counts_beyond_what_is_legal_are_refused(library, k):
    with pytest.raises(Exception, match="TopLogits: k must be from 1 to 256"):
        session(library, k)


@pytest.mark.parametrize("shape", [(2, 3), (2, 0)])
def test_fewer_logits_than_are_asked_for_are_refused(library, shape):
    with pytest.raises(Exception, match="TopLogits: logits must be"):
        session(library, 4).run(None, {"logits": np.zeros(shape, np.float32)})


if __name__ == "__main__":
    np.savez(sys.argv[2], **compute(Path(sys.argv[1])))  # type: ignore[arg-type]
