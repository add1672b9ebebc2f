"""LLM.over: an engine that is open already, in place of the artifact's own."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import LLM, EnginewrightError, PromptError, SamplingParams, loading
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends.onnxruntime import OnnxRuntimeEngine
from enginewright.runtime.engine import EngineInfo
from enginewright.runtime.errors import NativeCodeError

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPT = list(range(100))


class NarrowEngine(OnnxRuntimeEngine):
    """One whose steps hold 24 positions, as an engine with optimization profiles may declare."""

    closed = 0

    def describe(self) -> EngineInfo:
        info = super().describe()
        return dataclasses.replace(info, steps=dataclasses.replace(info.steps, tokens=24))

    def step(self, batch: Any) -> Any:
        assert batch.input_ids.shape[1] == 1 or batch.input_ids.size <= 24
        return super().step(batch)

    def close(self) -> None:
        self.closed += 1
        super().close()


@pytest.fixture
def engine(tiny_artifact: Path) -> NarrowEngine:
    artifact = Artifact.open(tiny_artifact)
    (entry,) = artifact.plans()
    return NarrowEngine(artifact.file(entry.model), entry, threads=1)


@pytest.fixture
def llm(tiny_artifact: Path, engine: NarrowEngine) -> Iterator[LLM]:
    with LLM.over(tiny_artifact, engine) as llm:
        yield llm


def test_an_entry_is_opened_and_named(tiny_artifact: Path, tiny_model: Any) -> None:
    (entry,) = Artifact.open(tiny_artifact).plans()
    another = dataclasses.replace(entry, plan="another")
    with LLM.over(tiny_artifact, another) as llm:
        assert llm.plan == "another"
        (output,) = llm.generate([PROMPT], GREEDY)
    assert output.outputs[0].token_ids == tiny_model.continue_greedily(PROMPT, 8)


def test_foreign_code_of_an_entry_does_not_run(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, folder)
    (entry,) = Artifact.open(folder).plans()
    foreign = dataclasses.replace(entry, library=entry.model, platform="another")
    with pytest.raises(NativeCodeError, match="is for another"):
        LLM.over(folder, foreign)


def test_what_fails_on_the_way_closes_the_engine(
    tiny_artifact: Path, engine: NarrowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise EnginewrightError("no tokenizer")

    monkeypatch.setattr(loading.Tokenizer, "from_file", fail)
    with pytest.raises(EnginewrightError, match="no tokenizer"):
        LLM.over(tiny_artifact, engine)
    assert engine.closed == 1


def test_it_runs_as_the_artifact_does(llm: LLM, tiny_model: Any) -> None:
    short = [256, 72]
    outputs = llm.generate([short, PROMPT], GREEDY)
    for prompt, output in zip((short, PROMPT), outputs, strict=True):
        assert output.outputs[0].token_ids == tiny_model.continue_greedily(prompt, 8)
    assert llm.chat([{"role": "user", "content": "Hi"}], GREEDY)[0].outputs[0].token_ids


def test_it_closes_the_engine(llm: LLM, engine: NarrowEngine) -> None:
    llm.close()
    assert engine.closed == 1
    with pytest.raises(EnginewrightError, match="was closed"):
        llm.generate("Hi")


def test_logits_are_computed_in_steps_that_the_engine_holds(llm: LLM, tiny_model: Any) -> None:
    np.testing.assert_allclose(llm.logits(PROMPT), tiny_model.logits(PROMPT), atol=2e-4)
    with pytest.raises(PromptError, match="2 sequences of up to 13 tokens: a step of this engine"):
        llm.batch_logits([[1] * 13, [2]])
    first, second = llm.batch_logits([[1] * 12, [2]])
    assert (len(first), len(second)) == (12, 1)
