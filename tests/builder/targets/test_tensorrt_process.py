"""The compiling process: whatever becomes of it is an outcome or one error that says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginewright.builder.targets.tensorrt import process
from enginewright.builder.targets.tensorrt.job import Initializer, Job, Outcome, Profile, Tensor
from enginewright.builder.targets.tensorrt.library import Library, find_library
from enginewright.builder.targets.tensorrt.process import compile_job
from enginewright.runtime.errors import BuildError

LIBRARY = Library("tensorrt_rtx", "1.7.1.116", None)


def small_job(folder: Path, op: str = "MatMul", **changes: Any) -> Job:
    """y [B, 64] = op(x [B, 64], w [64, 64]) in float16, the weight outside the graph."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)
    (folder / "weights.bin").write_bytes(bytes(4096) + weight.tobytes())
    outside = TensorProto(
        name="w", data_type=TensorProto.FLOAT16, dims=(64, 64), data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": "weights.bin", "offset": "4096", "length": "8192"}.items():
        outside.external_data.add(key=key, value=value)
    named = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["B", 64]) for name in ("x", "y")
    ]
    node = helper.make_node(op, ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "small", named[:1], named[1:], [outside])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    (folder / "graph.onnx").write_bytes(model.SerializeToString())
    job = Job(
        library="tensorrt_rtx",
        graph=str(folder / "graph.onnx"),
        weights=str(folder / "weights.bin"),
        engine=str(folder / "model.engine"),
        initializers=(Initializer("w", 4096, 8192),),
        profiles=(Profile("decode", {"x": ((1, 64), (2, 64), (8, 64))}),),
        capabilities=("SM86", "SM120"),
    )
    return replace(job, **changes)


def ignore(line: str) -> None:
    """Progress that nobody reads."""


def test_a_job_and_an_outcome_survive_their_files(tmp_path: Path) -> None:
    job = small_job(tmp_path, timing_cache="/cache", version_compatible=True)
    job.write(tmp_path / "job")
    assert Job.read(tmp_path / "job") == job
    outcome = Outcome("1.7", (Tensor("x", "input", "int8", ("B", 4)),), 3, 4, 5, 6, 0.5, ("a",))
    outcome.write(tmp_path / "outcome")
    assert Outcome.read(tmp_path / "outcome") == outcome


def test_weights_come_from_outside_the_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    lines: list[str] = []
    outcome = compile_job(small_job(tmp_path), find_library("tensorrt_rtx"), lines.append)
    assert outcome.engine_bytes == (tmp_path / "model.engine").stat().st_size
    assert outcome.tensors[0] == Tensor("x", "input", "float16", ("B", 64))
    assert outcome.anonymous_peak > 1 << 20
    assert any(line.startswith("tensorrt_rtx: Building engine (") for line in lines)
    engine, data = (tmp_path / "model.engine").read_bytes(), (tmp_path / "weights.bin").read_bytes()
    assert data[4096:4160] in engine


def test_an_op_that_the_parser_lacks_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BuildError, match=r"graph cannot be read: MatMulInteger product"):
        compile_job(small_job(tmp_path, "MatMulInteger"), find_library("tensorrt_rtx"), ignore)


def test_a_weight_of_another_size_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    wrong = small_job(tmp_path, initializers=(Initializer("w", 4096, 4096),))
    with pytest.raises(BuildError, match="graph cannot be read"):
        compile_job(wrong, find_library("tensorrt_rtx"), ignore)


def test_what_the_library_cannot_build_is_told_in_its_own_words(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    eight_bits(tmp_path)
    with pytest.raises(BuildError, match=r"(?s)tensorrt_rtx 1\..* did not build.*fp8_e4m3"):
        compile_job(eight_bits(tmp_path), find_library("tensorrt_rtx"), ignore)


def eight_bits(folder: Path) -> Job:
    """A product with an fp8 weight, for a capability that has no fp8."""
    job = small_job(folder)
    model = onnx.load(job.graph, load_external_data=False)
    codes = TensorProto(
        name="codes", data_type=TensorProto.FLOAT8E4M3FN, dims=(64, 64), raw_data=bytes(64 * 64)
    )
    scale = numpy_helper.from_array(np.ones((), np.float16), "scale")
    del model.graph.initializer[:]
    model.graph.initializer.extend([codes, scale])
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"]))
    Path(job.graph).write_bytes(model.SerializeToString())
    return replace(job, initializers=(), capabilities=("SM86",))


def test_full_tensorrt_s_options_reach_the_library(tmp_path: Path) -> None:
    """TensorRT-RTX does not know them, and says so, or keeps an empty timing cache."""
    pytest.importorskip("tensorrt_rtx")
    found = find_library("tensorrt_rtx")
    with pytest.raises(BuildError, match="lean"):
        compile_job(small_job(tmp_path, version_compatible=True), found, ignore)
    cache = tmp_path / "kept.timing"
    compile_job(small_job(tmp_path, timing_cache=str(cache)), found, ignore)
    assert cache.exists()
    assert [path for path in tmp_path.iterdir() if path.stem == "kept"] == [cache]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.abort()", r"was ended by SIGABRT; its last lines:\n  the library said this$"),
        ("os.kill(os.getpid(), 9)", r"SIGKILL; was there enough memory\?; its last lines"),
        ("sys.exit(3)", r"ended with status 3; its last lines:\n  the library said this$"),
        ("sys.exit(0)", r"ended with status 0; its last lines"),
    ],
)
def test_a_process_that_ends_early_is_told_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    program = "import os, sys\nprint('the library said this', file=sys.stderr, flush=True)\n"
    (tmp_path / "dying_worker.py").write_text(program + code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(process, "_WORKER", "dying_worker")
    with pytest.raises(BuildError, match=said):
        compile_job(small_job(tmp_path), LIBRARY, ignore)


def test_a_build_that_is_interrupted_ends_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n"
    (tmp_path / "slow_worker.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(process, "_WORKER", "slow_worker")
    seen: list[int] = []

    def interrupt(line: str) -> None:
        seen.append(int(line.rpartition(" ")[2]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_job(small_job(tmp_path), LIBRARY, interrupt)
    assert not Path(f"/proc/{seen[0]}").exists()
