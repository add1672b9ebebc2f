"""Targets tensorrt_rtx and tensorrt: what is built of a tiny model, and what is refused first.

No engine runs here: that needs a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from transformers import LlamaConfig

from enginewright.builder.export import Exported, attach_weights, export
from enginewright.builder.families import family_of
from enginewright.builder.targets import CompileRequest, target_of
from enginewright.builder.targets.tensorrt import kernels, native_limits, target
from enginewright.builder.targets.tensorrt.capabilities import RTX
from enginewright.builder.targets.tensorrt.header import check_header
from enginewright.builder.targets.tensorrt.library import Library, find_library
from enginewright.builder.targets.tensorrt.lowering import lower
from enginewright.builder.targets.tensorrt.profiles import make_profiles
from enginewright.builder.weights import ArrayWeight
from enginewright.plugins.attention.cuda.kernel_set import KernelSet
from enginewright.runtime.artifact.manifest import EngineEntry, LimitsEntry
from enginewright.runtime.errors import (
    BuildError,
    MissingDependencyError,
    RecipeError,
    UnsupportedModelError,
)

pytest.importorskip("tensorrt_rtx")

LIMITS = LimitsEntry(max_context=128, max_batch=4)
ALL = tuple(RTX)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}
MakeModel = Callable[[], ir.Model]


@pytest.fixture(scope="module")
def exported() -> Exported:
    """A tiny Llama with heads of 32, traced once."""
    return export(LlamaConfig(**CONFIG), family_of("LlamaForCausalLM"))


@pytest.fixture(scope="module")
def model(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """A function: compiling changes a model, so each test has its own."""
    path = tmp_path_factory.mktemp("exported") / "graph.onnx"
    ir.save(exported.model, path)

    def made() -> ir.Model:
        copy = Exported(ir.load(path), exported.caches, exported.owners)
        random = np.random.default_rng(0)
        shapes = {
            owner: copy.model.graph.initializers[name].shape for name, owner in copy.owners.items()
        }
        weights = {
            owner: ArrayWeight(random.standard_normal(shape.numpy()).astype(np.float32) / 8)
            for owner, shape in sorted(shapes.items())
            if shape is not None
        }
        return attach_weights(copy, weights.__getitem__)

    return made


@pytest.fixture
def compiled(model: MakeModel, exported: Exported, tmp_path: Path) -> Callable[..., EngineEntry]:
    """``compiled(lines, precision="fp16", **request) -> entry``, into ``tmp_path``."""

    def compile_it(lines: list[str], precision: str = "fp16", **request: Any) -> EngineEntry:
        asked = {"limits": LIMITS, "folder": tmp_path} | request
        made = CompileRequest(
            precision=precision, caches=exported.caches, progress=lines.append, **asked
        )
        (entry,) = target_of("tensorrt_rtx").compile(model(), made)
        return entry

    return compile_it


def files_below(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {path for path in found if not path.startswith("evidence/")}


def test_one_engine_for_all_capabilities(compiled, tmp_path):
    lines: list[str] = []
    entry = compiled(lines, capabilities=ALL)
    assert files_below(tmp_path) == {entry.model}, "the weights' file was of the moment"
    assert entry.nvidia is not None
    assert (entry.nvidia.capabilities, entry.nvidia.later) == (ALL, False)
    assert entry.nvidia.library_version == find_library("tensorrt_rtx").version
    assert entry.nvidia.weights_bytes > 2 * 320 * 128
    check_header(tmp_path / entry.model, ALL)
    assert any("Building engine" in line for line in lines)
    assert "peak anonymous memory" in lines[-1]


def test_by_default_it_is_portable_and_runs_on_later_gpus(compiled, tmp_path):
    entry = compiled([])
    assert entry.nvidia.capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert entry.nvidia.later
    check_header(tmp_path / entry.model, ("8.0", "8.6", "8.9", "12.0", "12.1"))
    with pytest.raises(BuildError, match=r"not for compute capability 7\.5"):
        check_header(tmp_path / entry.model, ALL)


def test_the_entry_tells_what_the_engine_cannot(compiled):
    entry = compiled([])
    shapes = {tensor.name: (tensor.dtype, tensor.shape) for tensor in entry.io}
    assert shapes == {
        "input_ids": ("int64", ("batch", "sequence")),
        "past_lengths": ("int32", ("batch",)),
        "logits_index": ("int64", ("logits",)),
        "logits": ("float32", ("logits", 320)),
        **{
            f"{kind}_cache.{layer}{suffix}": ("float16", ("batch", 2, 128, 32))
            for kind in "kv"
            for layer in range(2)
            for suffix in ("", ".out")
        },
    }
    assert entry.nvidia.aliases == {
        f"{kind}_cache.{layer}.out": f"{kind}_cache.{layer}" for kind in "kv" for layer in range(2)
    }
    decode, prefill = (profile.shapes for profile in entry.nvidia.profiles)
    assert decode["input_ids"] == ((1, 1), (1, 1), (4, 1))
    assert prefill["input_ids"] == ((1, 1), (1, 128), (4, 128))
    assert prefill["logits_index"][-1] == (128,)
    assert (entry.kv.layout, entry.kv.block_size, entry.kv.dtype) == ("slots", 128, "float16")
    assert (entry.steps.decode, entry.steps.extend, entry.steps.tokens) == (4, 1, 128)
    assert (entry.plan, entry.vocab_size, entry.batch_invariant) == ("native", 320, False)


@pytest.mark.parametrize("attention", ["native", "plugin"])
def test_logits_may_stay_on_the_device(compiled, attention):
    if attention == "plugin":
        pytest.importorskip("triton")
    wanted = ALL if attention == "native" else ("8.6",)
    entry = compiled([], attention=attention, capabilities=wanted, top_logits=24)
    outputs = {
        each.name: (each.dtype, each.shape)
        for each in entry.io
        if each.direction == "output" and not each.name.endswith(".out")
    }
    assert outputs == {
        "logits": ("float32", ("logits", 320)),
        "top_logits": ("float32", ("logits", 24)),
        "top_ids": ("int32", ("logits", 24)),
        "log_normalizer": ("float32", ("logits",)),
    }
    assert entry.top_logits == 24


def test_what_it_took_is_in_the_evidence(compiled, tmp_path):
    entry = compiled([])
    report = json.loads((tmp_path / "evidence" / "compile.json").read_text())
    assert report["engine_bytes"] == (tmp_path / entry.model).stat().st_size
    assert report["anonymous_peak_bytes"] > report["weights_bytes"] > 0
    ratio = report["anonymous_peak_bytes"] / report["engine_bytes"]
    assert report["anonymous_peak_over_engine"] == pytest.approx(ratio, abs=1e-3)
    assert report["mapped_peak_bytes"] > 0
    assert report["layers"] > 10


def test_the_fingerprint_is_that_of_what_it_was_made_from(compiled, tmp_path):
    prints = [
        compiled([], folder=folder(tmp_path, name), **changes).fingerprint
        for name, changes in {
            "a": {},
            "b": {},
            "c": {"capabilities": ("8.6",)},
            "d": {"limits": LimitsEntry(128, 2)},
        }.items()
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


@pytest.mark.parametrize(
    ("precision", "wanted"),
    [
        ("fp16", ("7.5",)),
        ("bf16", ("8.0", "12.1")),
        ("int8", ("7.5", "8.6")),
        ("int4", ("8.6", "12.0")),
        ("fp8", ("8.9", "12.0")),
        ("nvfp4", ("12.0", "12.1")),
    ],
)
def test_each_precision_where_it_is_legal(compiled, precision, wanted):
    entry = compiled([], precision, capabilities=wanted)
    assert entry.precision == precision
    assert entry.kv.dtype == ("bfloat16" if precision == "bf16" else "float16")


@pytest.mark.parametrize(
    ("precision", "wanted", "lacking"),
    [
        ("bf16", ("7.5", "8.0"), "7.5"),
        ("fp8", ("8.6", "8.9"), "8.6"),
        ("fp8", None, "8.0, 8.6"),
        ("nvfp4", ("8.9", "12.0"), "8.9"),
    ],
)
def test_a_precision_that_a_capability_lacks_is_refused_before_the_build(
    compiled, tmp_path, precision, wanted, lacking
):
    lines: list[str] = []
    with pytest.raises(RecipeError, match=rf"precision {precision}: .* capability {lacking} do"):
        compiled(lines, precision, capabilities=wanted)
    assert lines == []
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_the_plugin_brings_its_kernels(compiled, tmp_path, kv_dtype):
    pytest.importorskip("triton")
    scales = {f"{kind}_cache.{i}": np.full(2, 0.05, np.float32) for kind in "kv" for i in range(2)}
    entry = compiled(
        [], attention="plugin", capabilities=("8.6",), kv_dtype=kv_dtype, kv_scales=scales
    )
    (plugin,) = entry.nvidia.plugins
    found = KernelSet.read(tmp_path / plugin.kernels)
    assert found.capabilities == ("8.6",)
    assert found.abi == plugin.abi
    assert files_below(tmp_path) == set(entry.files)
    stored = {"auto": "float16", "fp8": "float8_e4m3fn"}[kv_dtype]
    assert (entry.kv.layout, entry.kv.block_size, entry.kv.dtype) == ("paged", 32, stored)
    shapes = {tensor.name: tensor.shape for tensor in entry.io}
    assert shapes["k_cache.1"] == ("blocks", 2, 32, 32)
    assert shapes["block_table"] == ("batch", "blocks_per_row")
    assert not entry.nvidia.later
    assert entry.steps.extend == 4


def test_the_plugin_s_default_names_every_capability(exported):
    request = CompileRequest(Path(), "fp16", LIMITS, exported.caches, attention="plugin")
    coverage = target.TensorRTRTXTarget().coverage(request)
    assert coverage.runs_on == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert not coverage.later


def test_heads_that_the_kernels_lack_are_refused_by_their_limit(model, tmp_path):
    pytest.importorskip("triton")
    changed = lowered(model, "plugin")
    for value in changed.graph.inputs:
        if value.name in ("k_cache.0", "v_cache.0"):
            value.shape = ir.Shape(["blocks", 2, 32, 24])
    with pytest.raises(UnsupportedModelError, match=r"plugin: head size 24: .* multiples of 16"):
        kernels.compile_kernels(changed.graph, ("8.6",), tmp_path, "kernels")
    assert files_below(tmp_path) == set()


def test_fewer_heads_than_native_layers_take_are_refused_by_their_limit(model):
    changed = lowered(model, "native")
    (first, _) = (node for node in changed.graph if node.op_type == "TRT_Attention")
    first.inputs[0].shape = ir.Shape(["batch", 3, "sequence", 32])
    with pytest.raises(UnsupportedModelError, match=r"3 query heads.* 4 or more.*plugin"):
        native_limits.check(changed.graph, LIMITS)


def test_more_cache_than_a_tensor_holds_is_refused_with_what_fits(model):
    changed = lowered(model, "native")
    native_limits.check(changed.graph, LimitsEntry(128, 262143))
    with pytest.raises(RecipeError, match=r"262144 rows of 8192 .* max_batch of at most 262143"):
        native_limits.check(changed.graph, LimitsEntry(128, 262144))


def lowered(model: MakeModel, attention: str) -> ir.Model:
    changed = model()
    lower(changed, precision="fp16", attention=attention, max_context=128)  # type: ignore[arg-type]
    return changed


def test_without_the_library_s_plain_name_the_process_ends_and_that_is_told(compiled, monkeypatch):
    """The parser's trap, which Library.environment is there for."""
    pytest.importorskip("triton")
    found = find_library("tensorrt_rtx")
    bare = Library(found.name, found.version, folder=None)
    monkeypatch.setattr(target, "find_library", lambda name: bare)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    with pytest.raises(BuildError, match=r"(?s)compiling process .* SIGABRT.*last lines"):
        compiled([], attention="plugin", capabilities=("8.6",))


def test_a_pool_of_blocks_stays_within_what_a_tensor_may_hold(model):
    changed = lowered(model, "plugin")
    _, prefill = make_profiles(changed.graph, LimitsEntry(1 << 20, 4096))
    assert prefill.shapes["k_cache.0"][-1] == ((1 << 31) // (2 * 32 * 32) - 1, 2, 32, 32)
    assert prefill.shapes["input_ids"][-1] == (8, 2048)
    decode, _ = make_profiles(changed.graph, LimitsEntry(128, 4))
    assert decode.shapes["k_cache.0"][-1][0] == 2 * 4 * 4 + 1
    assert decode.shapes["block_table"][-1] == (4, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:40], "no engine"),
        (lambda data: b"XXXX" + data[4:], "no engine"),
        (lambda data: data[:-1], "says it has"),
    ],
)
def test_a_damaged_engine_is_found_by_its_header(compiled, tmp_path, change, said):
    engine = tmp_path / compiled([]).model
    engine.write_bytes(change(engine.read_bytes()))
    with pytest.raises(BuildError, match=said):
        check_header(engine, ())


def test_tensorrt_asks_for_a_gpu_where_its_package_is_there(monkeypatch):
    monkeypatch.setattr(target, "find_library", lambda name: Library(name, "11.4.0", None))
    monkeypatch.setattr("ctypes.CDLL", _no_driver)
    with pytest.raises(MissingDependencyError, match=r"GPU .* tensorrt_rtx needs neither"):
        target_of("tensorrt").check("native")


def _no_driver(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")
