"""An engine of "TensorRT" on the host driver: it caches tokens, and its logits betray wrong ones.

It is called as the real library is, by names, shapes and addresses, and works when its stream runs
it, so also from a captured graph. Each head of each layer caches the row's tokens plus a number of
its own; logits are a digest of all that a row cached. Run by the scenarios, in their process.

| tensor                | shape                       | what it holds                    |
|-----------------------|-----------------------------|----------------------------------|
| k_cache.i, v_cache.i  | [blocks, HEADS, size, 2]    | float16: token + mark, twice     |
| logits                | [L, VOCAB]                  | scores, from a digest            |
| top_logits, top_ids   | [L, TOP]                    | the highest, where asked for     |
| log_normalizer        | [L]                         | log(sum(exp(logits)))            |
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from enginewright.runtime.artifact.manifest import (
    EngineEntry,
    KVEntry,
    LimitsEntry,
    NvidiaEntry,
    ProfileEntry,
    StepsEntry,
    TensorEntry,
)

VOCAB, LAYERS, HEADS, DIM = 31, 2, 3, 2
CONTEXT, BATCH, BLOCK, WIDTH = 64, 6, 8, 32
TOP = 8
CACHES = [f"{kind}_cache.{i}" for i in range(LAYERS) for kind in "kv"]
DTYPES = {
    "input_ids": np.int64,
    "logits_index": np.int64,
    "logits": np.float32,
    "top_logits": np.float32,
    "log_normalizer": np.float32,
}
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def entry(layout: Any, top: bool = False) -> EngineEntry:
    """The manifest's entry of the engine in a layout. ``top``: it gives the highest logits, too."""
    size = BLOCK if layout == "paged" else CONTEXT
    inputs = ["input_ids", "past_lengths", "logits_index"]
    inputs += ["new_lengths", "block_table"] if layout == "paged" else []
    shapes: dict[str, tuple[int | str, ...]] = dict.fromkeys(inputs, ("B",))
    shapes |= dict.fromkeys(CACHES, ("blocks", HEADS, size, DIM))
    return EngineEntry(
        target="tensorrt_rtx",
        plan="test",
        precision="fp16",
        fingerprint="",
        model="engine/model.engine",
        files=("engine/model.engine",),
        io=(
            *(TensorEntry(name, "input", "", shape) for name, shape in shapes.items()),
            *([TensorEntry("top_logits", "output", "float32", ("L", TOP))] if top else []),
        ),
        vocab_size=VOCAB,
        kv=KVEntry(layout, LAYERS, HEADS, DIM, "float16", size),
        limits=LimitsEntry(CONTEXT, BATCH),
        steps=StepsEntry(BATCH, BATCH, BATCH if layout == "paged" else 1, WIDTH),
        batch_invariant=False,
        nvidia=NvidiaEntry(
            library="tensorrt_rtx",
            library_version="1.7.1.116",
            capabilities=("8.6",),
            later=False,
            profiles=(ProfileEntry("decode", {}), ProfileEntry("prefill", {})),
            aliases={f"{name}.out": name for name in CACHES},
            plugins=(),
            weights_bytes=1,
        ),
    )


class Library:
    """What the runtime asks of the module, and an engine.

    ``capturable``: what contexts tell of themselves; "fails" tells yes, and refuses the second run
    of a context, which is the one that is captured.
    """

    def __init__(self, capturable: str = "yes") -> None:
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
        self.device_memory_size_v2 = 1024
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.capturable = capturable
        self.contexts: list[Context] = []
        self.ran: list[tuple[int, int, int]] = []
        """Profile, rows and width of each run, replays of graphs counted."""

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy: None)

    def create_execution_context(self, config: Any) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]


@dataclass(frozen=True)
class Tensors:
    """The bound tensors of one run, as arrays over the device's memory."""

    addresses: dict[str, int]
    shapes: dict[str, tuple[int, ...]]

    def __getitem__(self, name: str) -> Any:
        shape = self.shapes[name]
        kind = np.float16 if "cache" in name else DTYPES.get(name, np.int32)
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        raw = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(raw, kind).reshape(shape)


class Context:
    """An execution context."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._profile = -1
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kept: list[Any] = []
        self.refused = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == self._library.device_memory_size_v2

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % (256 if name in ("top_ids", "log_normalizer") else 4) == 0

    def is_stream_capturable(self, stream: int) -> bool:
        return self._library.capturable != "no"

    def execute_async_v3(self, stream: int) -> bool:
        if self._library.capturable == "fails" and len(self._kept) == 1 and self._profile == 0:
            self.refused += 1
            self._kept.append(None)
            return False
        tensors = Tensors(dict(self._addresses), dict(self._shapes))
        rows, width = tensors.shapes["input_ids"]
        (wanted,) = tensors.shapes["logits_index"]
        tensors.shapes["logits"] = (wanted, VOCAB)
        tensors.shapes["top_logits"] = tensors.shapes["top_ids"] = (wanted, TOP)
        tensors.shapes["log_normalizer"] = (wanted,)
        for name in CACHES:
            assert self._addresses[f"{name}.out"] == self._addresses[name]

        def work(_: Any) -> None:
            self._library.ran.append((self._profile, rows, width))
            run(tensors)

        callback = _CALLBACK(work)
        self._kept.append(callback)
        launch = self._library.driver.cuLaunchHostFunc
        return launch(ctypes.c_void_p(stream), callback, None) == 0


def run(tensors: Tensors) -> None:
    """The model: write the new tokens, read the rows back, score."""
    ids, past = tensors["input_ids"], tensors["past_lengths"]
    rows, width = ids.shape
    paged = "block_table" in tensors.shapes
    table = tensors["block_table"] if paged else np.arange(rows)[:, None]
    new = tensors["new_lengths"] if paged else np.full(rows, width)
    caches = [tensors[name] for name in CACHES]
    size = caches[0].shape[2]
    for row in range(rows):
        for at in range(new[row]):
            block, offset = divmod(int(past[row]) + at, size)
            for number, cache in enumerate(caches):
                for head in range(HEADS):
                    cache[table[row, block], head, offset] = ids[row, at] + 100 * number + 10 * head
    for place, index in enumerate(tensors["logits_index"]):
        row, at = divmod(int(index), width)
        found = logits(_cached(caches, table[row], past[row] + at + 1))
        tensors["logits"][place] = found
        if "top_logits" in tensors.addresses:
            highest = np.argsort(-found)[:TOP]
            tensors["top_logits"][place], tensors["top_ids"][place] = found[highest], highest
            tensors["log_normalizer"][place] = np.log(np.exp(found).sum())


def _cached(caches: Sequence[Any], blocks: Any, length: int) -> Any:
    """The tokens of a row, on which all layers and heads agree; else -1."""
    read = [
        cache[blocks, head].reshape(-1, DIM)[:length] - 100 * number - 10 * head
        for number, cache in enumerate(caches)
        for head in range(HEADS)
    ]
    tokens = np.stack(read)
    agreed = (tokens == tokens[0, :, :1]).all(axis=(0, 2))
    return np.where(agreed, tokens[0, :, 0], -1).astype(np.int64)


def logits(tokens: Any) -> Any:
    """A different likeliest token for almost any two sequences."""
    digest = hashlib.sha256(np.asarray(tokens, np.int64).tobytes()).digest()
    return np.random.default_rng(list(digest[:8])).random(VOCAB).astype(np.float32)


def continue_greedily(prompt: Sequence[int], count: int) -> list[int]:
    """The ids that any correct schedule gives."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(tokens).argmax()))
    return tokens[len(prompt) :]
