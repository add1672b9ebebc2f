"""The ONNX Runtime backend over a paged cache, with our attention, against plain numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry, KVEntry, LimitsEntry, StepsEntry
from enginewright.runtime.backends import onnxruntime_pools
from enginewright.runtime.backends.onnxruntime import OnnxRuntimeEngine
from enginewright.runtime.backends.onnxruntime_pools import PagedPool
from enginewright.runtime.engine import BlockCopy, StepBatch
from enginewright.runtime.errors import EnginewrightError, TargetError
from enginewright.runtime.scheduling import core

PROMPTS = [[3, 14, 15, 92, 65, 35, 89, 79, 32], [200, 1, 7], [42, 42, 42, 8, 100]]
BLOCK = 32
KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
CLOSE = {"float32": 1e-4, "float16": 2e-2}


@pytest.fixture(scope="session")
def library() -> Path:
    from enginewright.builder.targets.operators import compile_library, find_compiler

    if find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    made = compile_library()
    assert made is not None
    return made


@pytest.fixture(scope="session")
def entry(tiny_artifact: Path) -> EngineEntry:
    return Artifact.open(tiny_artifact).engine("cpu")


def paged(folder: Path, entry: EngineEntry, dtype: str) -> tuple[Path, EngineEntry]:
    """The tiny model with CachedAttention in place of GroupQueryAttention, and its entry."""
    model = onnx.load(folder / entry.model, load_external_data=True)
    kv = dataclasses.replace(entry.kv, layout="paged", dtype=dtype, block_size=BLOCK)
    scale = numpy_helper.from_array(np.full(kv.kv_heads, 0.05, np.float32), "scale")
    model.graph.initializer.append(scale)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            q, k, v, k_cache, v_cache, _, _, cos, sin = node.input
            step = [q, k, v, k_cache, v_cache, "block_table", "past_lengths", "new_lengths"]
            scales = ["", "scale", "scale"] if dtype == "int8" else []
            node.op_type, node.domain = "CachedAttention", "enginewright"
            node.input[:] = [*step, cos, sin, *scales]
            heads = {each.name: each.i for each in node.attribute}["num_heads"]
            given = {"num_heads": heads, "kv_heads": kv.kv_heads, "scale": kv.head_dim**-0.5}
            del node.attribute[:]
            rotary = {"rotary_dim": kv.head_dim, "window": 0, "softcap": 0.0}
            node.attribute.extend(helper.make_attribute(*each) for each in (given | rotary).items())
    for value in (*model.graph.input, *model.graph.output):
        if "_cache." in value.name:
            sizes = (kv.head_dim, BLOCK) if value.name.startswith("k") else (BLOCK, kv.head_dim)
            shape = ["blocks", kv.kv_heads, *sizes]
            value.CopyFrom(helper.make_tensor_value_info(value.name, KINDS[dtype], shape))
    table = helper.make_tensor_value_info("block_table", TensorProto.INT32, ["B", "n"])
    model.graph.input.append(table)
    model.opset_import.append(helper.make_opsetid("enginewright", 1))
    steps = StepsEntry(entry.limits.max_batch, entry.limits.max_batch, entry.limits.max_batch)
    path = folder / "engine" / f"paged-{dtype}.onnx"
    onnx.save(model, path)
    return path, dataclasses.replace(entry, kv=kv, steps=steps)


@pytest.fixture(params=KINDS)
def engine(
    request: pytest.FixtureRequest, tiny_artifact: Path, entry: EngineEntry, library: Path
) -> Iterator[Any]:
    engine = OnnxRuntimeEngine(*paged(tiny_artifact, entry, request.param), 1, library)
    engine.dtype = request.param  # type: ignore[attr-defined]
    engine.resize(8, BLOCK)
    yield engine
    engine.close()


def step_batch(
    tokens: Sequence[Sequence[int]],
    past: Sequence[int],
    tables: Sequence[Sequence[int]],
    logits_index: Sequence[int] | None = None,
) -> StepBatch:
    """Rows whose blocks need not be neighbours."""
    width = max(map(len, tables))
    table = np.array([[*blocks, *[0] * (width - len(blocks))] for blocks in tables], np.int32)
    return core.step_batch(tokens, past, table, logits_index)


def every_position(rows: Sequence[Sequence[int]]) -> list[int]:
    width = max(map(len, rows))
    return [row * width + at for row, ids in enumerate(rows) for at in range(len(ids))]


def assert_close(engine: Any, found: Any, wanted: Any) -> None:
    """int8 is not compared: its scales are not measured here."""
    if engine.dtype != "int8":
        tolerance = CLOSE[engine.dtype]
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_it_says_what_the_manifest_says(engine: Any) -> None:
    info = engine.describe()
    assert (info.kv_layout, info.kv_block_size) == ("paged", BLOCK)
    assert (info.steps.decode, info.steps.prefill, info.steps.extend) == (4, 4, 4)
    size = {"float32": 4, "float16": 2, "int8": 1}[engine.dtype]
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 16 * size
    assert not info.step_invariant, "no conformance was measured"


def test_a_ragged_prefill_equals_numpy_and_each_row_alone(engine: Any, tiny_model: Any) -> None:
    tables = [[5], [2], [7]]
    batch = step_batch(PROMPTS, [0, 0, 0], tables, every_position(PROMPTS))
    together = engine.step(batch).copy()
    assert_close(engine, together, np.concatenate([tiny_model.logits(ids) for ids in PROMPTS]))
    alone = [engine.step(step_batch([ids], [0], [[3]], range(len(ids)))).copy() for ids in PROMPTS]
    assert np.array_equal(together, np.concatenate(alone)), "bitwise the same"


@pytest.mark.parametrize("chunk", [1, 2, 7, 32, 50])
def test_a_prompt_has_the_same_bits_in_any_steps(engine: Any, tiny_model: Any, chunk: int) -> None:
    ids = [(7 * at + at * at) % 258 for at in range(70)]
    whole = engine.step(step_batch([ids], [0], [[1, 6, 0]], range(len(ids)))).copy()
    assert_close(engine, whole, tiny_model.logits(ids))
    parts = []
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        batch = step_batch([part], [start], [[2, 7, 3]], range(len(part)))
        parts.append(engine.step(batch).copy())
    assert np.array_equal(np.concatenate(parts), whole)


def test_rows_extend_and_decode_together(engine: Any, tiny_model: Any) -> None:
    tables = [[4], [1], [6]]
    engine.step(step_batch(PROMPTS, [0, 0, 0], tables))
    pasts = [len(prompt) for prompt in PROMPTS]
    more = [[5], [77, 250, 9], [8, 8]]
    found = engine.step(step_batch(more, pasts, tables, every_position(more))).copy()
    wanted = [
        tiny_model.logits([*prompt, *new])[len(prompt) :]
        for prompt, new in zip(PROMPTS, more, strict=True)
    ]
    assert_close(engine, found, np.concatenate(wanted))


def test_copied_blocks_and_growth_keep_what_rows_have(engine: Any, tiny_model: Any) -> None:
    ids = [(5 * at) % 258 for at in range(40)]
    engine.step(step_batch([ids], [0], [[0, 1]]))
    engine.copy_blocks([BlockCopy(1, 3, 0, 8)])
    addresses = {name: array.ctypes.data for name, array in engine._pool.tensors.items()}
    binding = next(iter(engine._bindings.values()))
    engine.resize(16, BLOCK)
    assert {n: a.ctypes.data for n, a in engine._pool.tensors.items()} == addresses
    found = engine.step(step_batch([[5], [5]], [40, 40], [[0, 1], [0, 3]])).copy()
    assert next(iter(engine._bindings.values())) is binding, "nothing was bound again"
    assert np.array_equal(found[0], found[1])
    assert_close(engine, found[0], tiny_model.logits([*ids, 5])[-1])


def test_the_cache_is_written_in_place_and_nowhere_else(engine: Any) -> None:
    engine.step(step_batch(PROMPTS[:2], [0, 0], [[2], [5]]))
    pool = engine._pool.tensors
    before = {name: tensor[:8].copy() for name, tensor in pool.items()}
    engine.step(step_batch([[9], [9]], [9, 3], [[2], [5]]))
    for name, tensor in pool.items():
        axes = (1, 2) if name.startswith("k") else (1, 3)
        changed = np.argwhere((tensor[:8] != before[name]).any(axis=axes)).tolist()
        assert changed == [[2, 9], [5, 3]], "only the new tokens were written"
    (binding,) = engine._bindings.values()
    bound = (*pool.values(), *engine._outputs.values())
    held = {array.ctypes.data for array in bound}
    assert {value.data_ptr() for value in binding.io.get_outputs()} == held


@pytest.mark.parametrize(("layout", "dtype"), [("paged", "float8"), ("ragged", "float32")])
def test_an_unknown_cache_is_refused(
    tiny_artifact: Path, entry: EngineEntry, layout: str, dtype: str
) -> None:
    kv = dataclasses.replace(entry.kv, layout=layout, dtype=dtype, block_size=BLOCK)
    artifact = Artifact.open(tiny_artifact)
    said = f"layout '{layout}' and type '{dtype}' was built.*paged: float32, float16, int8"
    with pytest.raises(TargetError, match=said):
        OnnxRuntimeEngine(artifact.file(entry.model), dataclasses.replace(entry, kv=kv))


def resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_pool_takes_memory_only_for_what_is_written() -> None:
    pool = PagedPool(KVEntry("paged", 1, 8, 128, "float16", BLOCK), LimitsEntry(1 << 17, 256))
    before = resident()
    pool.resize(64, BLOCK)
    assert sum(array.nbytes for array in pool.tensors.values()) == 256 * (1 << 17) * 2 * 8 * 128 * 2
    for array in pool.tensors.values():
        array[5] = 1
    assert resident() - before < 4 << 20
    pool.clear()


def test_a_pool_moves_where_address_space_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PagedPool(KVEntry("paged", 1, 1, 8, "float32", BLOCK), LimitsEntry(1024, 4))
    real, largest = onnxruntime_pools._private_pages, 20 * 8 * BLOCK * 4

    def little(size: int) -> Any:
        if size > largest:
            raise OSError("no address space")
        return real(size)

    monkeypatch.setattr(onnxruntime_pools, "_private_pages", little)
    assert pool.resize(4, BLOCK)
    pool.tensors["v_cache.0"][3] = 7
    assert not pool.resize(4, BLOCK)
    assert pool.resize(16, BLOCK), "moved"
    assert (pool.tensors["v_cache.0"][3] == 7).all()
    assert (pool.tensors["v_cache.0"][4:16] == 0).all()
    with pytest.raises(EnginewrightError, match="cache of 32 blocks of 32 tokens"):
        pool.resize(32, BLOCK)


def test_requests_over_few_blocks(
    tiny_artifact: Path, entry: EngineEntry, tiny_model: Any, library: Path
) -> None:
    """Rows share beginnings and wait for room; what they say does not change."""
    model, described = paged(tiny_artifact, entry, "float32")
    described = dataclasses.replace(described, limits=LimitsEntry(max_context=96, max_batch=3))
    start = [(3 * at) % 256 for at in range(BLOCK + 4)]
    prompts = [[*start, 9], [*start, 10, 11], [1, 2, 3], [*start, 9], [5] * 50]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    with LLM.over(tiny_artifact, OnnxRuntimeEngine(model, described, 1, library)) as llm:
        outputs = llm.generate(prompts, params)
        several = llm.generate(prompts[0], SamplingParams(n=3, seed=1, max_tokens=9))[0].outputs
    assert len({tuple(output.token_ids) for output in several}) > 1
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.outputs[0].token_ids == tiny_model.continue_greedily(prompt, 24)
