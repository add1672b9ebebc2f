"""The conformance stage where the device is not here: the graph is run, and judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from enginewright.builder.conformance import check_conformance
from enginewright.builder.recipe import Recipe, make_recipe
from enginewright.runtime.artifact.manifest import EngineEntry, NvidiaEntry, ProfileEntry
from enginewright.runtime.conformance import REFERENCE_FILE, Reference
from enginewright.runtime.errors import ConformanceError

CONTEXT = 600


@pytest.fixture(scope="module")
def checkpoint(tiny_artifact: Path) -> Path:
    return tiny_artifact.parents[1] / "checkpoint"


@pytest.fixture(scope="module")
def reference(tiny_artifact: Path) -> Reference:
    return Reference.load(tiny_artifact / REFERENCE_FILE)


@pytest.fixture
def graph(make_graph, checkpoint) -> tuple[ir.Model, EngineEntry]:
    return make_graph(checkpoint, "fp16", "plugin", max_context=CONTEXT)


def _recipe(checkpoint: Path, **thresholds: float) -> Recipe:
    fields: dict[str, Any] = {
        "name": "tiny",
        "source": {"path": str(checkpoint)},
        "target": "tensorrt_rtx",
        "precision": "fp16",
        "limits": {"max_context": CONTEXT, "max_batch": 24},
        "conformance": {"fp16": {"min_top1_agreement": 0.95, "max_mean_kl": 0.001, **thresholds}},
    }
    return make_recipe(fields)


@pytest.mark.parametrize("attention", ["native", "plugin"])
def test_the_manifest_says_that_the_graph_passed_and_no_device_was_there(
    make_graph, checkpoint, reference, tiny_artifact, attention
):
    model, entry = make_graph(checkpoint, "fp16", attention, max_context=CONTEXT)
    recipe = _recipe(checkpoint)
    found = check_conformance(recipe, reference, tiny_artifact, [entry], model)
    assert set(found) == {attention}
    result = found[attention]
    assert result["graph"] == "passed"
    assert result["device"] == "not run"
    assert result["measures"]["greedy_prompts"] == 3
    assert 0 < result["measures"]["mean_kl"] < 0.001
    # What only a device can tell is not in it.
    assert not {"prefill_invariant", "decode_invariant", "chunk_difference"} & set(
        result["measures"]
    )
    assert all(row["passed"] for row in result["rows"])


def test_a_graph_that_is_too_far_off_is_not_published(graph, checkpoint, reference, tiny_artifact):
    model, entry = graph
    recipe = _recipe(checkpoint, max_mean_kl=1e-9)
    with pytest.raises(ConformanceError, match=r"plan plugin missed(?s:.*)mean KL.*MISSED"):
        check_conformance(recipe, reference, tiny_artifact, [entry], model)


def test_a_graph_that_is_lowered_wrongly_is_found_out(graph, checkpoint, reference, tiny_artifact):
    model, entry = graph
    node = next(n for n in model.graph if n.op_type == "EnginewrightCachedAttention")
    node.attributes["scale"] = ir.AttrFloat32("scale", 1.5 * node.attributes["scale"].as_float())
    with pytest.raises(ConformanceError, match="missed a threshold"):
        check_conformance(_recipe(checkpoint), reference, tiny_artifact, [entry], model)


def test_a_step_that_no_optimization_profile_takes_is_found_out(
    graph, checkpoint, reference, tiny_artifact
):
    model, entry = graph
    shapes = {"input_ids": ((1, 1), (1, 1), (24, 40))}
    nvidia = NvidiaEntry(
        library="tensorrt_rtx",
        library_version="0",
        capabilities=("8.6",),
        later=False,
        profiles=(ProfileEntry("prefill", shapes),),
        aliases={},
        plugins=(),
        weights_bytes=0,
    )
    with pytest.raises(AssertionError, match="no optimization profile takes a step"):
        check_conformance(
            _recipe(checkpoint), reference, tiny_artifact, [replace(entry, nvidia=nvidia)], model
        )


def test_a_part_of_a_reference(reference):
    part = reference.part(2, 5)
    assert part.prompts() == reference.prompts()[:2]
    np.testing.assert_array_equal(part.greedy_ids, reference.greedy_ids[:2, :5])
    assert part.greedy_margins.shape == (2, 5)
    np.testing.assert_array_equal(part.text_ids, reference.text_ids)
