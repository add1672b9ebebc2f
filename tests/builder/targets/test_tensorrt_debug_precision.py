"""build --debug-precision, as far as it goes without a GPU: ONNX Runtime's half, and the report."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import LlamaConfig

from enginewright.builder.export import attach_weights, export
from enginewright.builder.families import family_of
from enginewright.builder.interpreter.interpreter import Interpreter
from enginewright.builder.targets import target_of
from enginewright.builder.targets.tensorrt import debug_precision
from enginewright.builder.targets.tensorrt.lowering import lower
from enginewright.builder.weights import ArrayWeight
from enginewright.runtime.errors import MissingDependencyError, RecipeError

IDS = [5, 9, 200, 17, 3, 3, 99]


@pytest.fixture(scope="module")
def lowered() -> ir.Model:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=320,
        max_position_embeddings=64,
    )
    exported = export(config, family_of("LlamaForCausalLM"))
    random = np.random.default_rng(0)
    weights = {
        owner: ArrayWeight(
            random.standard_normal(exported.model.graph.initializers[name].shape.numpy()).astype(
                np.float32
            )
            / 8
        )
        for name, owner in exported.owners.items()
    }
    model = attach_weights(exported, weights.__getitem__)
    lower(model, precision="fp16", attention="native", max_context=64, top_logits=8)
    return model


def test_onnx_runtime_runs_the_graph_and_shows_its_layers(lowered: ir.Model, tmp_path: Path):
    inputs = debug_precision.feed(lowered, IDS)
    given = {name: torch.from_numpy(value.copy()) for name, value in inputs.items()}
    wanted = Interpreter(lowered).run(given)["logits"].numpy()
    debug_precision.portable(lowered)
    session = debug_precision.session(debug_precision.save(lowered, tmp_path / "debug"))
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, inputs), strict=True))
    assert np.abs(found["logits"] - wanted).max() < 5e-3 * np.abs(wanted).max()
    attended = [name for name in names if found[name].shape == (1, 4, len(IDS), 16)]
    assert len(attended) == 2
    assert len(names) > 5 + 2 * 8
    assert "top_ids" not in names


def test_the_first_tensor_that_is_off_is_named():
    one = np.linspace(-1, 1, 50, dtype=np.float16)
    pairs = {"a": (one, one * np.float16(1.01)), "b": (one, one + 1), "c": (one, one * np.nan)}
    first, *lines = debug_precision.table(pairs).splitlines()
    assert first.startswith("first tensor off: b (")
    assert [line.split()[1] == "OFF" for line in lines] == [False, True, True]
    assert debug_precision.table({"a": (one, one)}).startswith("no tensor is off")


def test_polygraphy_s_runners_are_compared(lowered: ir.Model, tmp_path: Path):
    pytest.importorskip("polygraphy")
    runner = importlib.import_module("polygraphy.backend.onnxrt").OnnxrtRunner
    graph = debug_precision.save(lowered, tmp_path / "debug")
    runners = [runner(debug_precision.session(graph), name=name) for name in ("one", "two")]
    said = debug_precision.compare(runners, debug_precision.feed(lowered, IDS))
    assert said.startswith("no tensor is off")
    assert "logits" in said


@pytest.mark.parametrize(
    ("precision", "attention", "said"),
    [
        ("bf16", "native", "has no bf16"),
        ("nvfp4", "native", "has no nvfp4"),
        ("fp16", "plugin", "no attention plugin"),
    ],
)
def test_what_onnx_runtime_lacks_is_refused(precision: str, attention: str, said: str):
    with pytest.raises(RecipeError, match=said):
        target_of("tensorrt").check_debug_precision(precision, attention)


def test_it_is_refused_for_other_targets():
    with pytest.raises(RecipeError, match="it is for target: tensorrt"):
        target_of("tensorrt_rtx").check_debug_precision("fp16", "native")


def test_a_missing_package_is_answered_by_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(MissingDependencyError, match=r"polygraphy.*enginewright\[debug,cpu\]"):
        debug_precision.check("fp16", "native")
