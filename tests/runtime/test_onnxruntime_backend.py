"""The ONNX Runtime backend against plain numpy, on a model written by hand."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import KVEntry
from enginewright.runtime.backends import open_engine
from enginewright.runtime.backends.onnxruntime import (
    KEPT_LOGITS_ROWS,
    OnnxRuntimeEngine,
)
from enginewright.runtime.backends.onnxruntime_pools import SlotPool
from enginewright.runtime.cores import available_cores
from enginewright.runtime.engine import BlockCopy, StepBatch
from enginewright.runtime.errors import ArtifactError, EnginewrightError, TargetError
from enginewright.runtime.scheduling import core

PROMPTS = [[3, 14, 15, 92, 65, 35, 89, 79, 32], [200, 1, 7], [42, 42, 42, 8, 100]]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def engine(tiny_artifact: Path) -> Any:
    artifact = Artifact.open(tiny_artifact)
    engine = open_engine(artifact, artifact.engine("cpu"), threads=1)
    engine.resize(4, 64)
    yield engine
    engine.close()


def step_batch(
    tokens: Sequence[Sequence[int]],
    past: Sequence[int],
    first_slot: int,
    logits_index: Sequence[int] | None = None,
) -> StepBatch:
    """Rows in consecutive slots."""
    table = np.arange(first_slot, first_slot + len(tokens), dtype=np.int32)[:, None]
    return core.step_batch(tokens, past, table, logits_index)


def every_position(rows: Sequence[Sequence[int]]) -> list[int]:
    width = max(map(len, rows))
    return [row * width + at for row, ids in enumerate(rows) for at in range(len(ids))]


def test_it_says_what_the_manifest_says(engine: Any, tiny_model: Any) -> None:
    info = engine.describe()
    assert (info.max_context, info.max_batch, info.vocab_size) == (600, 4, tiny_model.vocab)
    assert (info.steps.decode, info.steps.prefill, info.steps.extend) == (4, 4, 1)
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4


def test_a_ragged_prefill_equals_numpy_and_each_row_alone(engine: Any, tiny_model: Any) -> None:
    batch = step_batch(PROMPTS, [0, 0, 0], 1, every_position(PROMPTS))
    together = engine.step(batch).copy()
    expected = np.concatenate([tiny_model.logits(prompt) for prompt in PROMPTS])
    np.testing.assert_allclose(together, expected, **CLOSE)
    alone = [
        engine.step(step_batch([prompt], [0], 0, range(len(prompt)))).copy() for prompt in PROMPTS
    ]
    assert np.array_equal(together, np.concatenate(alone)), "bitwise the same"


@pytest.mark.parametrize("chunk", [1, 2, 4, 8])
def test_chunks_equal_numpy(engine: Any, tiny_model: Any, chunk: int) -> None:
    ids = PROMPTS[0]
    parts = []
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        parts.append(engine.step(step_batch([part], [start], 2, range(len(part)))).copy())
    np.testing.assert_allclose(np.concatenate(parts), tiny_model.logits(ids), **CLOSE)


def test_a_ragged_decode_equals_numpy_and_each_row_alone(engine: Any, tiny_model: Any) -> None:
    engine.step(step_batch(PROMPTS, [0, 0, 0], 0))
    pasts = [len(prompt) for prompt in PROMPTS]
    for token in (5, 77, 250):
        together = engine.step(step_batch([[token]] * 3, pasts, 0)).copy()
        alone = [
            engine.step(step_batch([[token]], [past], slot)).copy()
            for slot, past in enumerate(pasts)
        ]
        assert np.array_equal(together, np.concatenate(alone)), "bitwise the same"
        pasts = [past + 1 for past in pasts]
    expected = [tiny_model.logits([*prompt, 5, 77, 250])[-1] for prompt in PROMPTS]
    np.testing.assert_allclose(together, expected, **CLOSE)


def test_the_cache_is_written_in_place(engine: Any) -> None:
    """By address: what a step writes appears in the pool, and its outputs are the pool."""
    pool = engine._pool.tensors
    addresses = {name: tensor.ctypes.data for name, tensor in pool.items()}
    engine.step(step_batch(PROMPTS[:2], [0, 0], 1))
    before = {name: tensor.copy() for name, tensor in pool.items()}
    pasts = [len(prompt) for prompt in PROMPTS[:2]]
    engine.step(step_batch([[9], [9]], pasts, 1))
    outputs = engine._bindings[1, 2].io.get_outputs()
    for (name, tensor), output in zip(pool.items(), outputs[: len(pool)], strict=True):
        assert tensor.ctypes.data == addresses[name], "the pool did not move"
        assert output.data_ptr() == tensor[1].ctypes.data, "the output is the pool's memory"
        changed = np.argwhere((tensor != before[name]).any(axis=(1, 3))).tolist()
        assert changed == [[1, pasts[0]], [2, pasts[1]]], "only the new tokens were written"


def test_no_output_has_memory_of_its_own(engine: Any) -> None:
    """Every output of a step lies in memory that we gave: the pool, or the logits' buffer."""
    logits = engine.step(step_batch(PROMPTS[:2], [0, 0], 0))
    ours = [*engine._pool.tensors.values(), logits]
    ranges = [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in ours]
    for value in engine._bindings[0, 2].io.get_outputs():
        address = value.data_ptr()
        assert any(start <= address < end for start, end in ranges)


def test_repeated_shapes_are_bound_once(engine: Any) -> None:
    engine.step(step_batch(PROMPTS, [0, 0, 0], 0))
    engine.step(step_batch([[1], [2], [3]], [9, 3, 5], 0))
    binding = engine._bindings[0, 3]
    addresses = {name: array.ctypes.data for name, array in binding.inputs.items()}
    first = engine.step(step_batch([[1], [2], [3]], [9, 3, 5], 0)).copy()
    second = engine.step(step_batch([[7], [8], [9]], [10, 4, 6], 0))
    assert engine._bindings[0, 3] is binding
    assert {name: array.ctypes.data for name, array in binding.inputs.items()} == addresses
    assert not np.array_equal(first, second), "the fixed inputs took the new values"


def test_many_logits_do_not_stay_in_memory(engine: Any, tiny_model: Any) -> None:
    engine.resize(1, 256)
    ids = list(range(KEPT_LOGITS_ROWS + 36))
    logits = engine.step(step_batch([ids], [0], 0, range(len(ids))))
    np.testing.assert_allclose(logits, tiny_model.logits(ids), **CLOSE)
    last = engine.step(step_batch([[1]], [len(ids)], 0)).copy()
    np.testing.assert_allclose(last[0], tiny_model.logits([*ids, 1])[-1], **CLOSE)
    assert len(engine._outputs["logits"]) <= KEPT_LOGITS_ROWS


def test_rows_survive_copies_and_growth(engine: Any, tiny_model: Any) -> None:
    engine.resize(3, 16)
    engine.step(step_batch(PROMPTS, [0, 0, 0], 0))
    engine.copy_blocks([BlockCopy(2, 0, 0, 5)])
    engine.resize(4, 128)
    engine.copy_blocks([BlockCopy(1, 3, 0, 3)])
    logits = engine.step(step_batch([[5], [6]], [5, 3], 0))
    np.testing.assert_allclose(logits[0], tiny_model.logits([*PROMPTS[2], 5])[-1], **CLOSE)
    np.testing.assert_allclose(logits[1], tiny_model.logits([*PROMPTS[1], 6])[-1], **CLOSE)
    logits = engine.step(step_batch([[7]], [3], 3))
    np.testing.assert_allclose(logits[0], tiny_model.logits([*PROMPTS[1], 7])[-1], **CLOSE)


def test_the_pool_copies_only_what_rows_hold() -> None:
    pool = SlotPool(KVEntry("slots", 1, 1, 2, "float32"))
    pool.resize(2, 4)
    pool.tensors["k_cache.0"][0] = 1.0
    pool.note_lengths(0, np.array([3], np.int32))
    pool.copy(BlockCopy(0, 1, 1, 3))
    assert pool.tensors["k_cache.0"][1, 0, :, 0].tolist() == [0, 1, 1, 0]
    pool.resize(2, 8)
    assert pool.tensors["k_cache.0"][1, 0, :, 0].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    assert (pool.slots, pool.capacity) == (2, 8)


def test_closing_twice_is_allowed(tiny_artifact: Path) -> None:
    artifact = Artifact.open(tiny_artifact)
    engine = open_engine(artifact, artifact.engine("cpu"), threads=1)
    engine.close()
    engine.close()


def test_threads_are_the_cores_that_may_be_used(tiny_artifact: Path) -> None:
    artifact = Artifact.open(tiny_artifact)
    entry = artifact.engine("cpu")
    by_default = OnnxRuntimeEngine(artifact.file(entry.model), entry)
    options = by_default._session.get_session_options()
    assert options.intra_op_num_threads == available_cores() <= (os.cpu_count() or 1)
    one = OnnxRuntimeEngine(artifact.file(entry.model), entry, threads=1)
    assert one._session.get_session_options().intra_op_num_threads == 1
    with pytest.raises(EnginewrightError, match="threads=0: at least 1"):
        OnnxRuntimeEngine(artifact.file(entry.model), entry, threads=0)


def test_a_model_that_is_none_is_refused(tiny_artifact: Path, tmp_path: Path) -> None:
    entry = Artifact.open(tiny_artifact).engine("cpu")
    model = tmp_path / "model.onnx"
    model.write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"model\.onnx: onnxruntime .* cannot load"):
        OnnxRuntimeEngine(model, entry)


def test_a_model_with_another_interface_is_refused(make_tiny: Callable[..., Path]) -> None:
    folder = make_tiny()
    entry = Artifact.open(folder).engine("cpu")
    model = onnx.load(folder / entry.model, load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "scores"
    onnx.save(model, folder / entry.model)
    with pytest.raises(ArtifactError, match="differing: logits, scores"):
        OnnxRuntimeEngine(folder / entry.model, entry)


def test_another_cache_type_is_refused(tiny_artifact: Path) -> None:
    artifact = Artifact.open(tiny_artifact)
    entry = artifact.engine("cpu")
    half = dataclasses.replace(entry, kv=dataclasses.replace(entry.kv, dtype="float16"))
    with pytest.raises(TargetError, match="type 'float16' was built"):
        open_engine(artifact, half)
