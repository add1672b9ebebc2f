"""Which kernels run: those of exactly the instruction set that is asked for, session by session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginewright.plugins.block_linear import contract
from enginewright.runtime.backends.cpu_kernels import hold_to, kernels_of
from enginewright.runtime.processor import CPU_KERNELS, INSTRUCTION_SETS

KERNELS = INSTRUCTION_SETS
VECTORS = {"avx2vnni": "avx2", "avx512vnni": "avx512", "amx": "avx512"}
"""What attention and the operators over rows take, which VNNI is nothing to."""
TILED = ("linear4", "linear8_bfloat16", "attention_half_bfloat16")
INPUTS, OUTPUTS = 64, 48


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CPU_KERNELS, raising=False)


def expected(instructions: str) -> Mapping[str, str]:
    """The kernels of each operator, on a processor that has this instruction set."""
    linear = "avx512vnni" if instructions == "amx" else instructions
    vectors = VECTORS.get(instructions, instructions)
    found = {
        "linear4": linear,
        "linear8": linear,
        "linear8_bfloat16": linear,
        "attention": vectors,
        "attention_half": vectors,
        "attention_half_bfloat16": vectors,
        "attention_int8": vectors,
        "rows": vectors,
    }
    return found | dict.fromkeys(TILED, "amx") if instructions == "amx" else found


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("asked_by", ["session", "environment"])
def test_what_is_asked_for_runs(
    library: Path, monkeypatch: pytest.MonkeyPatch, cpu_kernels: str, asked_by: str
) -> None:
    if asked_by == "environment":
        monkeypatch.setenv(CPU_KERNELS, cpu_kernels)
    found = kernels_of(library, cpu_kernels if asked_by == "session" else None)
    assert found is not None
    assert found.instructions == cpu_kernels
    assert found.operators == expected(cpu_kernels)


def test_the_environment_goes_over_the_session(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def instructions(held_to: str | None) -> str:
        found = kernels_of(library, held_to)
        assert found is not None
        return found.instructions

    best = instructions(None)
    monkeypatch.setenv(CPU_KERNELS, "portable")
    assert instructions(best) == "portable"
    monkeypatch.setenv(CPU_KERNELS, "amx")
    assert instructions("portable") == best
    monkeypatch.setenv(CPU_KERNELS, "")
    assert instructions("portable") == "portable", "empty is as if it were not set"


def product() -> bytes:
    """A BlockLinear of 4 bits."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (OUTPUTS, INPUTS // 2), np.uint8)
    scales = rng.normal(size=(OUTPUTS, INPUTS // 32)).astype(np.float32)
    attributes = {"N": OUTPUTS, "K": INPUTS, "bits": 4, "block_size": 32, "zero": 8}
    node = helper.make_node(
        contract.OP_TYPE, ["x", "codes", "scales"], ["y"], domain=contract.DOMAIN, **attributes
    )
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", kind, [None, INPUTS])],
        [helper.make_tensor_value_info("y", kind, [None, OUTPUTS])],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")],
    )
    opsets = [
        helper.make_opsetid("", 21),
        helper.make_opsetid(contract.DOMAIN, contract.ABI_VERSION),
    ]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return made


def session(library: Path, held_to: str | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    hold_to(options, held_to)
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(product(), options, providers=["CPUExecutionProvider"])


def test_sessions_of_one_process_keep_to_their_own(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = kernels_of(library, None)
    assert best is not None
    if best.instructions == "portable":
        pytest.skip("this processor has one kind of kernels")
    x = np.random.default_rng(1).normal(size=(3, INPUTS)).astype(np.float32)

    def bits(opened: Any) -> bytes:
        found: bytes = opened.run(None, {"x": x})[0].tobytes()
        return found

    wanted = {}
    for name in ("portable", best.instructions):
        monkeypatch.setenv(CPU_KERNELS, name)
        wanted[name] = bits(session(library, None))
    monkeypatch.delenv(CPU_KERNELS)
    assert len(set(wanted.values())) == 2, "or nothing is shown here"
    held = {name: session(library, name) for name in reversed(wanted)}
    free = session(library, None)
    for _ in range(2):
        assert {name: bits(opened) for name, opened in held.items()} == wanted
        assert bits(free) == wanted[best.instructions]
