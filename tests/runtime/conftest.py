"""What the runtime's tests share: an engine without a model, and a tiny real artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save_model
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from enginewright.runtime.artifact.manifest import (
    MANIFEST_NAME,
    EngineEntry,
    FileEntry,
    KVEntry,
    LimitsEntry,
    Manifest,
    SamplingDefault,
    SourceEntry,
    StepsEntry,
)
from enginewright.runtime.backends.onnxruntime import OnnxRuntimeEngine
from enginewright.runtime.engine import BlockCopy, Engine, EngineInfo, StepBatch, StepSupport

# A busy machine must not fail a property: no limits of wall-clock time.
hypothesis.settings.register_profile(
    "enginewright", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("enginewright")

POISON = -1
DECODED = 1000


class NullEngine(Engine):
    """Caches the tokens themselves; its logits are a function of all tokens that a row cached.

    So a row that runs over a wrong block, over a wrong past, or without a copy that was due, gives
    other ids than ``continue_greedily``. It also checks the contract of each step. An engine that
    is ``rounding`` also tells tokens that were computed one at a time from others, as real ones do
    in the last bits.
    """

    def __init__(
        self,
        *,
        max_context: int = 64,
        max_batch: int = 4,
        steps: tuple[int, int, int] = (4, 4, 1),
        vocab_size: int = 31,
        block_size: int = 0,
        rounding: bool = False,
        chunk_invariant: bool = True,
        step_invariant: bool = False,
    ) -> None:
        self._info = EngineInfo(
            vocab_size=vocab_size,
            max_context=max_context,
            max_batch=max_batch,
            steps=StepSupport(*steps),
            kv_layout="paged" if block_size else "slots",
            kv_bytes_per_token=8,
            batch_invariant=True,
            chunk_invariant=chunk_invariant,
            step_invariant=step_invariant,
            kv_block_size=block_size,
        )
        self.pool: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self.ran: list[tuple[str, int, int]] = []
        self.computed = 0
        self.copied = 0
        self.closed = 0
        self.fail_at: int | None = None
        self._rounding = rounding

    def describe(self) -> EngineInfo:
        return self._info

    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        self._check(batch)
        if self.fail_at is not None and len(self.ran) >= self.fail_at:
            raise RuntimeError("the device is gone")
        rows, width = batch.input_ids.shape
        mark = DECODED if self._rounding and width == 1 and batch.past_lengths.any() else 0
        contexts = []
        for row in range(rows):
            past, new = int(batch.past_lengths[row]), int(batch.new_lengths[row])
            for at in range(width):
                block, offset = divmod(past + at, self.pool.shape[1])
                if at < new:
                    token = batch.input_ids[row, at] + mark
                    self.pool[batch.block_table[row, block], offset] = token
                elif self._info.kv_layout == "slots":  # engines may write the padding too
                    self.pool[batch.block_table[row, 0], offset] = POISON
            cached = self.pool[batch.block_table[row]].reshape(-1)[: past + new]
            assert (cached >= 0).all(), "a cached token is missing"
            contexts.append(cached.copy())
            self.computed += new
        wanted = [divmod(int(index), width) for index in batch.logits_index]
        ends = [int(batch.past_lengths[row]) + position + 1 for row, position in wanted]
        return np.stack(
            [self.logits(contexts[row][:end]) for (row, _), end in zip(wanted, ends, strict=True)]
        )

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        for each in copies:
            assert 0 <= each.start < each.end <= self.pool.shape[1]
            content = self.pool[each.source, : each.end]
            assert (content >= 0).all(), "a token that is copied is missing"
            self.pool[each.destination, each.start : each.end] = content[each.start :]
            self.pool[each.destination, each.end :] = POISON
            self.copied += each.end - each.start

    def resize(self, blocks: int, block_size: int) -> None:
        old = self.pool[:blocks, :block_size]
        self.pool = np.full((blocks, block_size), POISON, np.int64)
        self.pool[: old.shape[0], : old.shape[1]] = old

    def close(self) -> None:
        self.closed += 1

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """A different likeliest token for almost any two different sequences of tokens."""
        digest = hashlib.sha256(tokens.astype(np.int64).tobytes()).digest()
        scores = np.random.default_rng(list(digest[:8])).random(self._info.vocab_size)
        return scores.astype(np.float32)

    def continue_greedily(self, prompt: Sequence[int], count: int) -> list[int]:
        """The ids that any correct schedule must give."""
        cached, tokens = list(prompt), []
        for _ in range(count):
            tokens.append(int(self.logits(np.array(cached, np.int64)).argmax()))
            cached.append(tokens[-1] + (DECODED if self._rounding else 0))
        return tokens

    def _check(self, batch: StepBatch) -> None:
        rows, width = batch.input_ids.shape
        blocks = batch.block_table
        limits = self._info.steps
        if not batch.past_lengths.any():
            kind, limit = "prefill", limits.prefill
        elif width == 1:
            kind, limit = "decode", limits.decode
        else:
            kind, limit = "extend", limits.extend
        assert rows <= limit, f"{rows} rows in a {kind} step"
        ends = batch.past_lengths + batch.new_lengths
        if self._info.kv_layout == "slots":
            assert (np.diff(blocks[:, 0]) == 1).all()
            assert blocks.shape == (rows, 1)
            ends = batch.past_lengths + (width if kind != "decode" else 1)
        assert blocks.max() < len(self.pool)
        assert ((batch.new_lengths >= 1) & (batch.new_lengths <= width)).all()
        assert batch.new_lengths.max() == width
        assert (ends <= blocks.shape[1] * self.pool.shape[1]).all()
        self.ran.append((kind, rows, width))


class TinyModel:
    """Two layers of attention with random weights: plain numpy here, ONNX in ``save``."""

    vocab, hidden, heads, kv_heads, head_dim, layers = 258, 64, 4, 2, 16, 2
    max_context, max_batch = 600, 4

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, int]] = {
            "embedding": (self.vocab, self.hidden),
            "head": (self.hidden, self.vocab),
        }
        for i in range(self.layers):
            shapes[f"q.{i}"] = (self.hidden, width)
            shapes[f"k.{i}"] = shapes[f"v.{i}"] = (self.hidden, kv_width)
            shapes[f"o.{i}"] = (width, self.hidden)
        self.weights = {
            name: (rng.normal(size=shape) / 8).astype(np.float32) for name, shape in shapes.items()
        }
        self.weights["embedding"] *= 8
        half = self.head_dim // 2
        frequencies = 10000.0 ** (-np.arange(half) / half)
        angles = np.arange(self.max_context)[:, None] * frequencies
        self.weights["cos"] = np.cos(angles).astype(np.float32)
        self.weights["sin"] = np.sin(angles).astype(np.float32)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits at every position, without a cache."""
        w, count = self.weights, len(tokens)
        x = w["embedding"][list(tokens)]
        causal = np.tril(np.ones((count, count), bool))
        for i in range(self.layers):
            q = self._rotated((x @ w[f"q.{i}"]).reshape(count, self.heads, self.head_dim))
            k = self._rotated((x @ w[f"k.{i}"]).reshape(count, self.kv_heads, self.head_dim))
            v = (x @ w[f"v.{i}"]).reshape(count, self.kv_heads, self.head_dim)
            group = self.heads // self.kv_heads
            k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(self.head_dim)
            scores = np.where(causal, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            attended = np.einsum("hqk,khd->qhd", weights, v).reshape(count, -1)
            x = x + (attended @ w[f"o.{i}"]).astype(np.float32)
        return np.asarray(x @ w["head"], np.float32)

    def continue_greedily(self, prompt: Sequence[int], count: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    def save(self, folder: Path) -> EngineEntry:
        """Write engine/model.onnx with engine/weights.bin, as the builder does."""
        path = folder / "engine" / "model.onnx"
        path.parent.mkdir(parents=True)
        graph = helper.make_graph(self._nodes(), "tiny", *self._interface(), self._initializers())
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        save_model(
            model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024
        )
        return EngineEntry(
            target="cpu",
            plan="test",
            precision="fp32",
            fingerprint="sha256:0",
            model="engine/model.onnx",
            files=("engine/model.onnx", "engine/weights.bin"),
            io=(),
            vocab_size=self.vocab,
            kv=KVEntry("slots", self.layers, self.kv_heads, self.head_dim, "float32"),
            limits=LimitsEntry(self.max_context, self.max_batch),
            steps=StepsEntry(self.max_batch, self.max_batch, 1),
            batch_invariant=True,
        )

    def _rotated(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        half, count = self.head_dim // 2, len(x)
        cos, sin = (self.weights[name][:count, None] for name in ("cos", "sin"))
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def _nodes(self) -> list[Any]:
        node = helper.make_node
        nodes = [
            node("Add", ["past_lengths", "new_lengths"], ["total"]),
            node("Sub", ["total", "one"], ["last"]),
            node("ReduceMax", ["total"], ["most"], keepdims=0),
            node("Shape", ["input_ids"], ["widths"], start=1, end=2),
            node("Cast", ["widths"], ["width"], to=TensorProto.INT32),
            node("ReduceMax", ["width"], ["wide"], keepdims=0),
            node("Max", ["most", "wide"], ["longest"]),
            node("Gather", ["embedding", "input_ids"], ["x.0"]),
        ]
        for i in range(self.layers):
            nodes += [node("MatMul", [f"x.{i}", f"{p}.{i}"], [f"{p}{i}"]) for p in "qkv"]
            caches = [f"k_cache.{i}", f"v_cache.{i}"]
            nodes += [
                node(
                    "GroupQueryAttention",
                    [f"q{i}", f"k{i}", f"v{i}", *caches, "last", "longest", "cos", "sin"],
                    [f"a{i}", *(f"{name}.out" for name in caches)],
                    domain="com.microsoft",
                    num_heads=self.heads,
                    kv_num_heads=self.kv_heads,
                    do_rotary=1,
                ),
                node("MatMul", [f"a{i}", f"o.{i}"], [f"y{i}"]),
                node("Add", [f"x.{i}", f"y{i}"], [f"x.{i + 1}"]),
            ]
        return [
            *nodes,
            node("Reshape", [f"x.{self.layers}", "rows"], ["flat"]),
            node("Gather", ["flat", "logits_index"], ["wanted"]),
            node("MatMul", ["wanted", "head"], ["logits"]),
        ]

    def _interface(self) -> tuple[list[Any], list[Any]]:
        value = helper.make_tensor_value_info
        inputs = [
            value("input_ids", TensorProto.INT64, ["B", "S"]),
            value("past_lengths", TensorProto.INT32, ["B"]),
            value("new_lengths", TensorProto.INT32, ["B"]),
            value("logits_index", TensorProto.INT64, ["L"]),
        ]
        outputs = [value("logits", TensorProto.FLOAT, ["L", self.vocab])]
        shape = ["B", self.kv_heads, "C", self.head_dim]
        for i in range(self.layers):
            for kind in "kv":
                name = f"{kind}_cache.{i}"
                inputs.append(value(name, TensorProto.FLOAT, shape))
                outputs.append(value(f"{name}.out", TensorProto.FLOAT, shape))
        return inputs, outputs

    def _initializers(self) -> list[Any]:
        constants = {"one": np.array(1, np.int32), "rows": np.array([-1, self.hidden])}
        return [
            numpy_helper.from_array(array, name)
            for name, array in (self.weights | constants).items()
        ]


def byte_tokenizer() -> tokenizers.Tokenizer:
    """A token for each byte, <s> (put before every text) and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    return tokenizer


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role[0] }}:{{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


def write_manifest(folder: Path, entry: EngineEntry, **changes: Any) -> Manifest:
    """Hash every file that is in the folder and write the manifest beside them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): FileEntry(
            path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in paths
        if path.name != MANIFEST_NAME
    }
    fields: dict[str, Any] = {
        "name": "tiny",
        "source": SourceEntry("checkpoint", "tiny", "sha256:0", "TinyForCausalLM"),
        "recipe": {},
        "engines": (entry,),
        "files": files,
        "tools": {},
        "eos_token_ids": (257,),
        "bos_token_id": 256,
        "sampling_defaults": {"temperature": SamplingDefault(0.7, "generation_config.json")},
    }
    manifest = Manifest(**(fields | changes))
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), "utf-8")
    return manifest


def write_tiny_artifact(
    folder: Path, model: TinyModel, template: str | None = CHAT_TEMPLATE
) -> None:
    """An artifact that the runtime loads as it loads a built one."""
    entry = model.save(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": {"content": "</s>"}}', "utf-8"
    )
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    write_manifest(folder, entry)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg-cache"))


@pytest.fixture(scope="session")
def null_engine() -> type[NullEngine]:
    return NullEngine


@pytest.fixture
def closed_engines(monkeypatch: pytest.MonkeyPatch) -> list[OnnxRuntimeEngine]:
    """Engines of the target cpu, as they are closed."""
    found: list[OnnxRuntimeEngine] = []
    close = OnnxRuntimeEngine.close
    monkeypatch.setattr(
        OnnxRuntimeEngine, "close", lambda engine: found.append(engine) or close(engine)
    )
    return found


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    return TinyModel()


@pytest.fixture(scope="session")
def tiny_artifact(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny artifact that tests only read."""
    folder = tmp_path_factory.mktemp("tiny") / "artifact"
    write_tiny_artifact(folder, tiny_model)
    return folder


@pytest.fixture
def make_tiny(tiny_model: TinyModel, tmp_path: Path) -> Callable[..., Path]:
    """A tiny artifact of the test's own, to be spoilt."""

    def make(template: str | None = CHAT_TEMPLATE, model: TinyModel = tiny_model) -> Path:
        folder = tmp_path / "own"
        write_tiny_artifact(folder, model, template)
        return folder

    return make


@pytest.fixture(scope="session")
def manifest_writer() -> Callable[..., Manifest]:
    return write_manifest
