"""Weights in huge pages: the same results, in memory that is the process's own.

The variable is read when an engine is opened, so each of its values is tried in a process of its
own: this file, run as a script.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginewright.plugins.block_linear import contract

OUTPUTS, INPUTS, BLOCK = 65536, 1024, 32
MEGABYTES = 40
"""Of codes 32, of scales and offsets 4 each."""


def memory() -> dict[str, int]:
    """Megabytes of this process, by kind."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = dict(re.findall(r"^(\w+): +(\d+) kB$", text, re.M))
    return {name: int(found[name]) // 1024 for name in ("Rss", "Anonymous", "AnonHugePages")}


def main(library: str, model: str, results: str) -> None:
    x = np.random.default_rng(5).normal(size=(3, INPUTS)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    before = memory()
    opened = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    y = opened.run(None, {"x": x})[0]
    during = memory()
    del opened
    figures = {"before": before, "during": during, "after": memory()}
    np.savez(results, y=y, figures=json.dumps(figures))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(4)
    blocks = INPUTS // BLOCK
    tensors = {
        "codes": rng.integers(0, 256, (OUTPUTS, blocks, BLOCK // 2), np.uint8),
        "scales": rng.normal(0, 0.02, (OUTPUTS, blocks)).astype(np.float16),
        "offsets": rng.normal(0, 0.1, (OUTPUTS, blocks)).astype(np.float16),
    }
    node = helper.make_node(
        contract.OP_TYPE,
        [name if name == "x" or name in tensors else "" for name in contract.INPUTS[:5]],
        ["y"],
        domain=contract.DOMAIN,
        N=OUTPUTS,
        K=INPUTS,
        bits=4,
        block_size=BLOCK,
        zero=0,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, OUTPUTS])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [
        helper.make_opsetid("", 20),
        helper.make_opsetid(contract.DOMAIN, contract.ABI_VERSION),
    ]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path = tmp_path_factory.mktemp("mapped") / "model.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="weights.bin")
    return path


@pytest.fixture(scope="module")
def opened_with(library: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("results")

    def opened(value: str) -> tuple[np.ndarray[Any, Any], dict[str, dict[str, int]]]:
        results = folder / f"{value}.npz"
        command = [sys.executable, __file__, str(library), str(model), str(results)]
        environment = os.environ | {"ENGINEWRIGHT_HUGE_PAGES": value}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with np.load(results) as found:
            return found["y"], json.loads(str(found["figures"]))

    return {value: opened(value) for value in ("0", "1")}


def test_the_results_are_the_same(opened_with):
    assert np.array_equal(opened_with["0"][0], opened_with["1"][0])


def test_a_copy_takes_the_place_of_the_pages_of_the_file(opened_with):
    mapped, copied = opened_with["0"][1], opened_with["1"][1]
    own = [each["during"]["Anonymous"] - each["before"]["Anonymous"] for each in (mapped, copied)]
    assert own[1] - own[0] == pytest.approx(MEGABYTES, abs=4)
    assert copied["during"]["Rss"] - mapped["during"]["Rss"] < 6, "those are given back"


def test_it_goes_with_the_engine(opened_with):
    figures = opened_with["1"][1]
    assert figures["after"]["Anonymous"] - figures["before"]["Anonymous"] < 10


def test_the_pages_are_huge_where_the_system_has_them(opened_with):
    allowed = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not allowed.is_file() or "[never]" in allowed.read_text():
        pytest.skip("this system has no transparent huge pages")
    assert opened_with["1"][1]["during"]["AnonHugePages"] >= 20


if __name__ == "__main__":
    main(*sys.argv[1:])
