"""The engine of target cuda on the host driver: ``python onnxruntime_scenario.py ARTIFACT NPZ``.

There the device's memory is the host's, so ONNX Runtime's CPU provider can run over the very
addresses that are bound for the GPU. Logits of each step go to the NPZ file.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.backends.onnxruntime_cuda.engine import CudaEngine
from enginewright.runtime.cuda.driver import Device, device_facts
from enginewright.runtime.cuda.memory import DeviceBuffer, HostBuffer
from enginewright.runtime.cuda.stream import Stream
from enginewright.runtime.engine import BlockCopy
from enginewright.runtime.errors import DeviceError
from enginewright.runtime.scheduling.core import step_batch

CONTEXT = 64
PROMPTS = [[3, 14, 159, 26, 53, 58, 97, 93, 238], [200, 11, 7], [42, 42, 42, 8, 100]]
TEXTS = ["It was the best of times", "Call me Ishmael.", "money in my purse", "It was the age"]


class HostBinding:
    """An IOBinding that takes the device's addresses for the host's."""

    def __init__(self, io: Any) -> None:
        self.io = io
        self.bound: list[tuple[str, str, int]] = []

    def bind_input(self, name: str, device: str, *rest: Any) -> None:
        self.bound.append((name, device, rest[-1]))
        self.io.bind_input(name, "cpu", *rest)

    def bind_output(self, name: str, device: str, *rest: Any) -> None:
        self.bound.append((name, device, rest[-1]))
        self.io.bind_output(name, "cpu", *rest)


class HostSession:
    """What the engine asks of a session. ``runs``: the binding and graph of each."""

    def __init__(self, model: Path) -> None:
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.runs: list[tuple[HostBinding, str]] = []
        self.released: list[int] = []

    def io_binding(self) -> HostBinding:
        return HostBinding(self._session.io_binding())

    def run_with_iobinding(self, binding: HostBinding, options: Any) -> None:
        self.runs.append((binding, options.get_run_config_entry("gpu_graph_id")))
        self._session.run_with_iobinding(binding.io)

    def release_captured_graph(self, number: int) -> None:
        self.released.append(number)


def main(folder: Path, results: Path) -> None:
    artifact = Artifact.open(folder)
    [entry] = artifact.manifest.engines
    device = Device()
    session = HostSession(artifact.file(entry.model))
    _refused_engine(session, entry, device)
    engine = CudaEngine(session, entry, device, Stream(), chunk_invariant=False)
    np.savez(results, *_steps(engine, session))
    _generate(folder, engine)
    engine.close()
    device.close()


def _steps(engine: CudaEngine, session: HostSession) -> list[np.ndarray]:
    """Logits of prompts, of decodes before and after the pool grew, and of a row in two parts."""
    engine.resize(4, CONTEXT)
    found = [_step(engine, PROMPTS, [0, 0, 0], 0)]
    _refused_prompt(engine, found[0])
    session.runs.pop(0)
    pasts = [len(prompt) for prompt in PROMPTS]
    for token in (5, 77):
        found.append(_step(engine, [[token]] * 3, pasts, 0))
        pasts = [past + 1 for past in pasts]
    (_, none), (first, one), (second, two) = session.runs
    assert (none, one, two) == ("-1", "1", "1"), "only decodes are graphs"
    assert first is second, "and are bound once"
    _check_in_place(first)

    engine.copy_blocks([BlockCopy(0, 3, 0, 4)])
    found.append(_step(engine, [PROMPTS[0][4:]], [4], 3))
    engine.resize(6, CONTEXT)
    assert session.released == [1], "a graph of the old pool is given back"
    found.append(_step(engine, [[250]] * 3, pasts, 0))
    assert session.runs[-1][1] == "2", "and its number is not used again"
    return found


def _refused_engine(session: HostSession, entry: EngineEntry, device: Device) -> None:
    """Without memory for the engine, what it has taken already is given back."""
    stream = Stream()
    with _full_device(), pytest.raises(DeviceError) as refused:
        CudaEngine(session, entry, device, stream, chunk_invariant=False)
    assert refused.value.code == "out_of_memory"
    pinned = [each for each in gc.get_objects() if isinstance(each, HostBuffer)]
    assert not any(each.address for each in pinned)
    stream.close()


def _refused_prompt(engine: CudaEngine, expected: np.ndarray) -> None:
    """A step that does not fit fails; those after it give what they gave before."""
    table = np.arange(3, dtype=np.int32)[:, None]
    with _full_device(), pytest.raises(DeviceError) as refused:
        engine.step(step_batch(PROMPTS, [0, 0, 0], table, [0] * 10_000))
    assert refused.value.code == "out_of_memory"
    assert np.array_equal(_step(engine, PROMPTS, [0, 0, 0], 0), expected)


@contextmanager
def _full_device() -> Iterator[None]:
    held = DeviceBuffer(device_facts().free_memory, "all that is free")
    try:
        yield
    finally:
        held.free()


def _step(engine: CudaEngine, tokens: list[list[int]], past: list[int], slot: int) -> np.ndarray:
    """The logits of every new token."""
    width = max(map(len, tokens))
    wanted = [row * width + at for row, ids in enumerate(tokens) for at in range(len(ids))]
    table = np.arange(slot, slot + len(tokens), dtype=np.int32)[:, None]
    return engine.step(step_batch(tokens, past, table, wanted)).copy()


def _check_in_place(binding: HostBinding) -> None:
    """Each cache is bound on the device, and its output where its input is."""
    devices = {name: device for name, device, _ in binding.bound}
    addresses = {name: address for name, _, address in binding.bound}
    assert devices.pop("total_length") == "cpu"
    assert set(devices.values()) == {"cuda"}
    caches = [name for name in addresses if name.startswith(("k_cache", "v_cache"))]
    assert len(caches) == 2 * 2 * 2
    for name in caches:
        assert addresses[name.removesuffix(".out")] == addresses[f"{name.removesuffix('.out')}.out"]


def _generate(folder: Path, engine: CudaEngine) -> None:
    """The loop that runs requests gets the same tokens from rows together and alone."""
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    with LLM.over(folder, engine) as llm:
        together = [output.outputs[0].token_ids for output in llm.generate(TEXTS, params)]
        alone = [llm.generate([text], params)[0].outputs[0].token_ids for text in TEXTS]
    assert together == alone


main(Path(sys.argv[1]), Path(sys.argv[2]))
