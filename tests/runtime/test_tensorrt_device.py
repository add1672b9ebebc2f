"""Whole engines on a GPU: built, loaded by the runtime, and compared with the interpreted graph.

Runs for each TensorRT that is installed and supports the GPU. Logits are compared where tokens
agree so far; a rounding that flips a near tie would show as a distance, not as a wrong token.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.cuda.driver import DeviceFacts, device_facts
from enginewright.runtime.errors import DeviceError, MissingDependencyError
from enginewright.runtime.plans import open_plan
from enginewright.runtime.scheduling.core import step_batch

pytestmark = pytest.mark.gpu

TOLERANCE = 0.05
"""Of logits whose spread is about 4, in float16."""


@pytest.fixture(scope="module")
def facts() -> DeviceFacts:
    try:
        return device_facts()
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(str(error))


@pytest.fixture(params=["tensorrt_rtx", "tensorrt"])
def target(request: Any, facts: DeviceFacts) -> str:
    name = str(request.param)
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    capabilities = pytest.importorskip("enginewright.builder.targets.tensorrt.capabilities")
    if name == "tensorrt_rtx" and facts.capability not in capabilities.RTX:
        pytest.skip(f"TensorRT-RTX does not build for compute capability {facts.capability}")
    return name


@pytest.fixture(params=["native", "plugin"])
def built(
    request: Any,
    target: str,
    facts: DeviceFacts,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> tuple[Artifact, Any]:
    """An artifact of a tiny model, and the very graph that was compiled, to be interpreted."""
    pipeline = pytest.importorskip("enginewright.builder.pipeline")
    conformance = pytest.importorskip("enginewright.builder.conformance")
    recipe = pytest.importorskip("enginewright.builder.recipe")
    if request.param == "plugin":
        pytest.importorskip("triton")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", {"head_dim": 32})
    fields: dict[str, Any] = {
        "name": "tiny",
        "source": {"path": str(checkpoint)},
        "target": target,
        "precision": "fp16",
        "attention": request.param,
        "limits": {"max_context": 128, "max_batch": 6},
    }
    if target == "tensorrt_rtx":
        fields["capabilities"] = [facts.capability]
    interpreted: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        kept = conformance.InterpretedEngine

        def keep(graph: Any, entry: Any) -> Any:
            interpreted.append(graph)
            return kept(graph, entry)

        patch.setattr(conformance, "InterpretedEngine", keep)
        folder = pipeline.build(recipe.make_recipe(fields), tmp_path, progress=lambda line: None)
    artifact = Artifact.open(folder)
    return artifact, kept(interpreted[0], artifact.manifest.engines[0])


def test_an_engine_agrees_with_its_interpreted_graph(built: tuple[Artifact, Any]) -> None:
    artifact, graph = built
    engine, entry = open_plan(artifact)
    paged = entry.kv.layout == "paged"
    size = entry.kv.block_size if paged else entry.limits.max_context
    width = -(-entry.limits.max_context // size) if paged else 1
    rng = np.random.default_rng(5)
    prompts = [rng.integers(3, 300, length).tolist() for length in (1, 40, 7, 33, 64)]
    rows = len(prompts)
    table = np.arange(rows * width, dtype=np.int32).reshape(rows, width)
    for each in (engine, graph):
        each.resize(rows * width, size)
    lengths = [len(prompt) for prompt in prompts]
    found = engine.step(step_batch(prompts, [0] * rows, table)).copy()
    wanted = graph.step(step_batch(prompts, [0] * rows, table))
    assert np.abs(found - wanted).max() < TOLERANCE
    for _ in range(30):  # decode steps: the first of a bucket is captured, others are replays
        tokens = [[int(row.argmax())] for row in wanted]
        batch = step_batch(tokens, lengths, table)
        found, wanted = engine.step(batch).copy(), graph.step(batch)
        assert np.abs(found - wanted).max() < TOLERANCE
        lengths = [length + 1 for length in lengths]
    few = replace(batch, **{name: getattr(batch, name)[:2] for name in vars(batch)})
    assert np.abs(engine.step(few) - graph.step(few)).max() < TOLERANCE
    engine.close()
    engine.close()
