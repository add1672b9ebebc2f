"""What is run on the host driver, a process each: ``python scenarios.py NAME``."""

from __future__ import annotations

import gc
import hashlib
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import host_library
import numpy as np
from host_library import BATCH, BLOCK, CONTEXT, Library, continue_greedily

from enginewright.plugins.attention.cuda.config import KernelConfig
from enginewright.plugins.attention.cuda.kernel_set import KernelEntry, KernelSet, abi_digest
from enginewright.plugins.attention.cuda.launch import Argument, Launch
from enginewright.plugins.attention.tensorrt import PLUGIN_NAME
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import (
    EngineEntry,
    FileEntry,
    Manifest,
    PluginEntry,
    SourceEntry,
)
from enginewright.runtime.backends import open_engine
from enginewright.runtime.backends.tensorrt.engine import OpenEngine, TensorRTEngine
from enginewright.runtime.backends.tensorrt.jit_cache import JitKey
from enginewright.runtime.cuda.driver import Device, device_facts
from enginewright.runtime.cuda.graph import Graph
from enginewright.runtime.cuda.memory import DeviceBuffer, HostBuffer
from enginewright.runtime.cuda.modules import KernelModules
from enginewright.runtime.cuda.stream import Stream
from enginewright.runtime.engine import BlockCopy
from enginewright.runtime.errors import DeviceError
from enginewright.runtime.requests.generation import Generation, Request
from enginewright.runtime.requests.group import RequestGroup
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import Sampler
from enginewright.runtime.scheduling.core import EngineCore, step_batch
from enginewright.runtime.scoring import batch_logits as every_logit


def facts() -> None:
    found = device_facts()
    assert (found.name, found.capability, found.cuda) == ("host", "8.6", "13.0")
    assert found.total_memory == found.free_memory == 1 << 30


def no_device() -> None:
    error = _refused(device_facts)
    assert error.code == "no_device"
    assert "CUDA_VISIBLE_DEVICES" in str(error)


def out_of_memory() -> None:
    """HOST_DRIVER_MEMORY is 100 MiB."""
    device = Device()
    held = DeviceBuffer(40 << 20, "what fits")
    error = _refused(lambda: DeviceBuffer(70 << 20, "the cache"))
    assert error.code == "out_of_memory"
    assert "the cache takes 70.0 MiB, 60.0 MiB of 100.0 MiB are free" in str(error)
    held.free()
    held.free()
    DeviceBuffer(70 << 20, "the cache").free()
    device.close()


def copies() -> None:
    device, stream = Device(), Stream()
    host, memory = HostBuffer(200), DeviceBuffer(200, "test")
    numbers = host.array(np.uint8, (200,))
    numbers[:] = np.arange(200)
    stream.upload(memory.address, host.address, 200)
    stream.copy_rows(memory.address + 100, memory.address, 3, 4, (10, 20))
    stream.copy(memory.address + 150, memory.address + 1, 2)
    stream.clear(memory.address + 198, 2)
    numbers[:] = 0
    stream.download(host.address, memory.address, 200)
    stream.synchronize()
    expected = np.arange(200)
    for row in range(4):
        expected[100 + 10 * row :][:3] = 20 * row + np.arange(3)
    expected[150:152], expected[198:] = [1, 2], 0
    assert numbers.tolist() == expected.tolist()
    for each in (memory, host):
        each.free()
    stream.close()
    device.close()


def graphs() -> None:
    device, stream = Device(), Stream()
    memory, host = DeviceBuffer(4, "test"), HostBuffer(4)
    numbers = host.array(np.uint8, (4,))
    stream.clear(memory.address, 4)

    def queue() -> None:
        stream.upload(memory.address, host.address, 2)

    numbers[:] = 7
    graph = Graph.capture(stream, queue)
    stream.download(host.address, memory.address, 4)
    assert numbers.tolist() == [0, 0, 0, 0], "capturing runs nothing"
    numbers[:] = [1, 2, 3, 4]
    graph.launch(stream)
    stream.download(host.address, memory.address, 4)
    assert numbers.tolist() == [1, 2, 0, 0], "a replay reads what is there then"

    def fails() -> None:
        raise DeviceError("refused")

    assert str(_refused(lambda: Graph.capture(stream, fails))) == "refused"
    stream.synchronize()  # the capture has ended
    for each in (graph, memory, host, stream):
        (each.free if hasattr(each, "free") else each.close)()
    device.close()


def launches() -> None:
    """What a kernel is launched with, by its entry and the launch's arguments."""
    device, stream = Device(), Stream()
    memory, host = DeviceBuffer(80, "test"), HostBuffer(80)
    config = KernelConfig("float16", 4, 2, 64, 32)
    with TemporaryDirectory() as folder:
        kernels = KernelModules(_kernels(config, Path(folder)), "8.6")
        arguments = (
            Argument("q", "pointer", memory.address),
            Argument("tokens", "int32", -7),
            Argument("cap", "float32", 1.5),
            Argument("cos", "pointer", None),
        )
        kernels.launch(config, Launch("decode", (5, 6, 7), arguments), stream.handle)
        error = _refused(lambda: kernels.launch(config, Launch("reduce", (1, 1, 1), ()), 0))
        assert error.code == "plugin_kernels"
        other = KernelModules(_kernels(config, Path(folder)), "9.0")
        error = _refused(lambda: other.launch(config, Launch("decode", (1, 1, 1), ()), 0))
        assert error.code == "plugin_kernels"
        assert "no attention kernels for compute capability 9.0" in str(error)
        kernels.close()
    stream.download(host.address, memory.address, 80)
    told = host.array(np.int64, (10,)).tolist()
    assert told == [5, 6, 7, 4 * 32, 70_000, 70_000, -7, 1500, 0, 0], told
    for each in (memory, host):
        each.free()
    stream.close()
    device.close()


def _kernels(config: KernelConfig, folder: Path) -> KernelSet:
    code = b"symbol\0"
    (folder / "decode.cubin").write_bytes(code)
    entry = KernelEntry(
        kernel="decode",
        config=config,
        capability="8.6",
        file="decode.cubin",
        sha256=hashlib.sha256(code).hexdigest(),
        symbol="symbol",
        num_warps=4,
        shared_bytes=70_000,
        registers=0,
        spill_bytes=0,
        hidden_pointers=1,
    )
    return KernelSet(folder, abi_digest(), "none", (entry,))


def refusals() -> None:
    """What a load refuses before it touches the library: the device has capability 8.6."""
    entry = host_library.entry("slots")
    nvidia = entry.nvidia
    assert nvidia is not None
    plugin = PluginEntry(PLUGIN_NAME, "1", "enginewright", "0" * 16, "engine/kernels/kernels.json")
    cases = {
        "capability": replace(nvidia, capabilities=("8.9", "12.0")),
        "library_version": replace(nvidia, library_version="1.5.0.1"),
        "plugin_abi": replace(nvidia, plugins=(plugin,)),
        "out_of_memory": replace(nvidia, weights_bytes=1 << 40),
        "engine_refused": nvidia,
    }
    for code, changed in cases.items():
        with TemporaryDirectory() as folder:
            artifact = _artifact(Path(folder), replace(entry, nvidia=changed))
            error = _refused(lambda: open_engine(artifact, artifact.engine(), None))  # noqa: B023
            assert error.code == code, error
    assert device_facts().free_memory == 1 << 30


def _artifact(folder: Path, entry: EngineEntry) -> Artifact:
    """An artifact whose engine is no engine."""
    (folder / "engine").mkdir()
    (folder / entry.model).write_bytes(b"no engine" * 100)
    source = SourceEntry("checkpoint", "", "", "")
    files = {entry.model: FileEntry(900, "")}
    return Artifact(folder, Manifest("", source, {}, (entry,), files, {}, (), None, {}))


def any_mix(layout: str, capturable: str = "yes") -> None:
    """Requests of all lengths that come and go give what each gives alone."""
    library, core, engine = _core(layout, capturable)
    rng = np.random.default_rng(3)
    requests = [
        (rng.integers(0, 31, rng.integers(1, 40)).tolist(), int(rng.integers(1, 20)))
        for _ in range(40)
    ]
    waiting, running = list(enumerate(requests)), []
    while waiting or core.busy:
        for number, (prompt, count) in waiting[: int(rng.integers(0, 4))]:
            running.append((_generation(number, prompt, count), prompt, count))
            core.add(RequestGroup([running[-1][0]]))
            waiting.pop(0)
        core.step()
    for each, prompt, count in running:
        assert each.output_token_ids == continue_greedily(prompt, count), (prompt, count)
    decodes = [rows for profile, rows, width in library.ran if profile == 0]
    assert max(decodes) == BATCH
    buckets = {1, 2, 4, 6} if layout == "paged" else set(range(1, BATCH + 1))
    assert set(decodes) <= buckets
    assert len(library.contexts) == 1 + len(set(decodes)), "a context for each graph"
    buckets_tried = sum(context.refused for context in library.contexts)
    assert buckets_tried == (len(set(decodes)) if capturable == "fails" else 0), "tried once each"
    _closed(engine)


def shared_prefixes(layout: str) -> None:
    """Rows that begin alike take over, and copy, what others have computed."""
    _, core, engine = _core(layout)
    prefix = [*range(30), 5, 6, 7, 8]
    for number in range(8):
        prompt = [*prefix, number, number + 1]
        each = _generation(number, prompt, 9)
        core.add(RequestGroup([each]))
        while core.busy:
            core.step()
        assert each.output_token_ids == continue_greedily(prompt, 9)
    _closed(engine)


def prompts_of_one_token_behind_other_rows() -> None:
    """With slots, a step of one token that does not start at slot 0 is a prefill, no graph."""
    library, core, engine = _core("slots")
    running = _generation(0, [1, 2, 3], 12)
    core.add(RequestGroup([running]))
    for _ in range(3):
        core.step()
    late = _generation(1, [9], 4)
    core.add(RequestGroup([late]))
    while core.busy:
        core.step()
    assert running.output_token_ids == continue_greedily([1, 2, 3], 12)
    assert late.output_token_ids == continue_greedily([9], 4)
    assert (1, 1, 1) in library.ran
    _closed(engine)


def logits_of_many_positions() -> None:
    """More rows of logits than are kept room for, then few again."""
    _, _, engine = _core("paged")
    engine.resize(40, BLOCK)
    tokens = [[(7 * row + at) % 31 for at in range(32)] for row in range(4)]
    table = np.arange(16, dtype=np.int32).reshape(4, 4)
    every = step_batch(tokens, [0] * 4, table, list(range(128)))
    found = engine.step(every).copy()
    for row in range(4):
        for at in range(32):
            expected = host_library.logits(tokens[row][: at + 1])
            assert np.array_equal(found[32 * row + at], expected), (row, at)
    few = engine.step(step_batch(tokens, [0] * 4, table))
    assert np.array_equal(few, found[31::32])
    _closed(engine)


def highest_logits(layout: str, capturable: str = "yes") -> None:
    """Greedy requests are served from the highest logits; others fetch the rows that they need."""
    _, core, engine = _core(layout, capturable, top=True)
    fetched: list[int] = []
    download = Stream.download

    def noted(stream: Stream, host: int, device: int, size: int) -> None:
        fetched.append(size)
        download(stream, host, device, size)

    Stream.download = noted  # type: ignore[method-assign]
    row = 4 * host_library.VOCAB
    prompts = [[number, 3, number] for number in range(5)]
    for biased in (False, True):
        rows = [_generation(n, prompt, 6, biased=biased) for n, prompt in enumerate(prompts)]
        for each in rows:
            core.add(RequestGroup([each]))
        while core.busy:
            core.step()
        for each, prompt in zip(rows, prompts, strict=True):
            assert each.output_token_ids == continue_greedily(prompt, 6)
        assert fetched.count(row) == (30 if biased else 0)
        assert biased or all(size % 256 == 0 for size in fetched), "no rows of logits"
    tokens = [[(7 * row + at) % 31 for at in range(20)] for row in range(3)]
    found = every_logit(core, tokens)
    for ids, logits in zip(tokens, found, strict=True):
        assert np.array_equal(logits[-1], host_library.logits(ids))
        assert np.array_equal(logits[4], host_library.logits(ids[:5]))
    _closed(engine)


def copies_of_parts_of_blocks() -> None:
    _, _, engine = _core("paged")
    engine.resize(4, BLOCK)
    one, other = list(range(8)), list(range(10, 18))
    table = np.array([[2], [1]], np.int32)
    engine.step(step_batch([one, other], [0, 0], table))
    engine.copy_blocks([BlockCopy(2, 0, 0, 8), BlockCopy(1, 0, 3, 5)])
    engine.resize(9, BLOCK)
    mixed = [*one[:3], *other[3:5], *one[5:]]
    logits = engine.step(step_batch([[20]], [8], np.array([[0, 8]], np.int32)))
    assert np.array_equal(logits[0], host_library.logits([*mixed, 20]))
    _closed(engine)


def no_memory_for_the_cache() -> None:
    """HOST_DRIVER_MEMORY is 1 MiB. The pool that there was stays whole."""
    _, _, engine = _core("paged")
    engine.resize(8, BLOCK)
    engine.step(step_batch([[1, 2]], [0], np.array([[3]], np.int32)))
    error = _refused(lambda: engine.resize(100_000, BLOCK))
    assert error.code == "out_of_memory"
    assert "100000 blocks of k_cache.0, of 4 such" in str(error)
    logits = engine.step(step_batch([[4]], [2], np.array([[3]], np.int32)))
    assert np.array_equal(logits[0], host_library.logits([1, 2, 4]))
    _closed(engine)


def no_memory_for_a_prompt() -> None:
    """HOST_DRIVER_MEMORY is 1 MiB. A step that does not fit fails, and those after it run."""
    _, _, engine = _core("paged")
    engine.resize(8, BLOCK)
    table = np.array([[3]], np.int32)
    engine.step(step_batch([[1, 2]], [0], table))
    error = _refused(lambda: engine.step(step_batch([[1] * 200_000], [0], table)))
    assert error.code == "out_of_memory"
    logits = engine.step(step_batch([[5, 6, 7]], [0], table))
    assert np.array_equal(logits[0], host_library.logits([5, 6, 7]))
    _closed(engine)


def a_smaller_pool() -> None:
    """Shrinking keeps the blocks that stay, and clears nothing behind the new memory."""
    _, _, engine = _core("slots")
    engine.resize(2, CONTEXT)
    engine.step(step_batch([[1, 2]], [0], np.array([[0]], np.int32)))
    cleared: list[int] = []
    clear = Stream.clear

    def noted(stream: Stream, address: int, size: int) -> None:
        cleared.append(size)
        clear(stream, address, size)

    Stream.clear = noted  # type: ignore[method-assign]
    engine.resize(1, CONTEXT)
    assert cleared == []
    logits = engine.step(step_batch([[4]], [2], np.array([[0]], np.int32)))
    assert np.array_equal(logits[0], host_library.logits([1, 2, 4]))
    _closed(engine)


def _core(
    layout: Any, capturable: str = "yes", *, top: bool = False
) -> tuple[Library, EngineCore, TensorRTEngine]:
    library, device, owned = Library(capturable), Device(), ExitStack()
    owned.callback(device.close)
    messages: Any = SimpleNamespace(take=lambda: "not while capturing")
    key = JitKey("", "", "", "", "")
    opened = OpenEngine(library, library, library, messages, device, key, owned)
    engine = TensorRTEngine(opened, host_library.entry(layout, top), chunk_invariant=False)
    return library, EngineCore(engine), engine


def _generation(number: int, prompt: list[int], count: int, *, biased: bool = False) -> Generation:
    """A greedy one; ``biased``: by so little that nothing changes, which it takes a row to see."""
    bias = {0: 1e-30} if biased else None
    params = SamplingParams(temperature=0, max_tokens=count, logit_bias=bias)
    sampler = Sampler(params, host_library.VOCAB, (), prompt, 0)
    request = Request(number, None, tuple(prompt), params)
    return Generation(request, sampler, max_context=CONTEXT)


def _closed(engine: TensorRTEngine) -> None:
    """Closing frees everything, and may be done twice."""
    engine.close()
    engine.close()
    gc.collect()
    found = device_facts()
    assert found.free_memory == found.total_memory


def _refused(call: Any) -> DeviceError:
    try:
        call()
    except DeviceError as error:
        return error
    raise AssertionError("no DeviceError")


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    globals()[name](*arguments)
    print("passed")
