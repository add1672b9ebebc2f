"""The CPU's native plan: our attention over a paged cache, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginewright.builder.pipeline import build
from enginewright.builder.recipe import make_recipe
from enginewright.builder.targets.operators import find_compiler
from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.artifact.artifact import Artifact

LOOSE = {"min_top1_agreement": 0.5, "max_mean_kl": 1.0, "max_perplexity_increase": 0.5}

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")


@pytest.fixture(scope="module")
def make(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Callable[..., Path]:
    """``make(precision, **recipe)``: the artifact."""
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {})

    def make(precision: str, **changes: Any) -> Path:
        recipe = make_recipe(
            {
                "name": "tiny",
                "source": {"path": str(checkpoint)},
                "target": "cpu",
                "precision": precision,
                "limits": {"max_context": 128, "max_batch": 4},
                "conformance": {} if precision == "fp32" else {precision: LOOSE},
                **changes,
            }
        )
        return build(recipe, tmp_path_factory.mktemp("out"), progress=lambda line: None)

    return make


def test_fp32_has_it_and_says_what_the_plain_plan_says(make: Callable[..., Path]) -> None:
    folder = make("fp32")
    native, plain = Artifact.open(folder).manifest.engines
    assert (native.plan, plain.plan) == ("native", "plain")
    assert (native.kv.layout, native.kv.dtype, native.kv.block_size) == ("paged", "float32", 32)
    assert (native.steps.decode, native.steps.prefill, native.steps.extend) == (4, 4, 4)
    assert native.library is not None
    assert (plain.kv.layout, plain.steps.extend) == ("slots", 1)
    assert set(native.files) & set(plain.files) == {"engine/weights.bin"}, "weights are shared"
    prompts = [[5, 6, 7], list(range(10, 80)), [9]]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    said = []
    for plan in ("native", "plain"):
        with LLM(folder, plan=plan, threads=1) as llm:
            assert llm.engine_info.kv_layout == ("paged" if plan == "native" else "slots")
            said.append([o.outputs[0].token_ids for o in llm.generate(prompts, params)])
            if plan == "native":
                assert llm.engine_info.step_invariant
                longer = llm.generate([[*prompts[1], *said[0][1][:5]]], params)[0].outputs[0]
                assert longer.token_ids[:15] == said[0][1][5:], "over what was cached"
    assert said[0] == said[1]


@pytest.mark.parametrize(("stored", "kept"), [(None, "float16"), ("int8", "int8")])
def test_int8_stores_less_and_computes_tokens_alike_in_any_step(
    make: Callable[..., Path], stored: str | None, kept: str
) -> None:
    changes = {"kv_cache": {"dtype": stored, "block_size": 64}} if stored else {}
    folder = make("int8", **changes)
    manifest = Artifact.open(folder).manifest
    native = manifest.engines[0]
    assert (native.kv.dtype, native.kv.block_size) == (kept, 64 if stored else 32)
    measures = manifest.conformance["native"]["measures"]
    assert measures["prefill_invariant"]
    assert measures["decode_invariant"]
    assert measures["chunk_difference"] == measures["step_difference"] == 0
    graph = onnx.load(folder / native.model, load_external_data=False).graph
    scales = [each for each in graph.initializer if each.name.endswith("_cache.0.scale")]
    found = [onnx.numpy_helper.to_array(each) for each in scales]
    assert len(found) == (2 if stored else 0)
    assert all(array.shape == (2,) and np.all(array > 0) for array in found)


def test_without_the_library_there_is_the_plain_plan(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginewright.builder.targets.operators.compile_library", lambda: None)
    assert [engine.plan for engine in Artifact.open(make("fp32")).manifest.engines] == ["plain"]
