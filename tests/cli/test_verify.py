"""``verify``: an artifact with reference values passes, misses a bound, or is damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from enginewright.cli.main import main
from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.artifact import Artifact
from enginewright.runtime.conformance import REFERENCE_FILE, Reference, log_softmax
from enginewright.runtime.manifest import FileEntry

PROMPTS = ([5, 6, 7], [9, 8, 7])
TEXT = list(range(40, 72))
NEW = 8


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy whose reference values are its own engine's answers."""
    folder = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    own_reference(folder).save(folder / REFERENCE_FILE)
    set_bounds(folder, {"min_greedy_agreement": 1.0, "max_perplexity_increase": 0.001})
    return folder


def own_reference(folder: Path) -> Reference:
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    with LLM(folder, threads=1, generation_config="vllm") as llm:
        greedy = [output.outputs[0].token_ids for output in llm.generate(list(PROMPTS), params)]
        logprobs = log_softmax(llm.logits(TEXT))[:-1]
    top = np.argsort(-logprobs, axis=1)[:, :5]
    labels = np.array(TEXT[1:])[:, None]
    return Reference(
        prompt_ids=np.array(PROMPTS, np.int32),
        greedy_ids=np.array(greedy, np.int32),
        greedy_margins=np.ones((len(PROMPTS), NEW), np.float32),
        text_ids=np.array([TEXT], np.int32),
        top_ids=top.astype(np.int32),
        top_logprobs=np.take_along_axis(logprobs, top, axis=1),
        label_logprobs=np.take_along_axis(logprobs, labels, axis=1)[:, 0],
    )


def set_bounds(folder: Path, bounds: dict[str, float]) -> None:
    """Write the bounds and the reference file's hash into the manifest."""
    content = (folder / REFERENCE_FILE).read_bytes()
    entry = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    manifest = Artifact.open(folder).manifest
    precision = manifest.engines[0].precision
    recipe = {**manifest.recipe, "precision": precision, "conformance": {precision: bounds}}
    files = {**manifest.files, REFERENCE_FILE: entry}
    changed = dataclasses.replace(manifest, recipe=recipe, files=files)
    (folder / "manifest.json").write_text(changed.to_json(), "utf-8")


def verify(folder: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["verify", str(folder), "--threads", "1", *arguments])


def test_an_artifact_that_answers_as_its_reference_passes(artifact: Path) -> None:
    result = verify(artifact)

    assert result.exit_code == 0, result.output
    assert "greedy agreement" in result.stdout
    assert result.stdout.endswith("passed\n")


def test_a_missed_bound_is_exit_code_1(artifact: Path) -> None:
    set_bounds(artifact, {"max_perplexity_increase": -0.5})
    result = verify(artifact)

    assert result.exit_code == 1
    (row,) = (line for line in result.stdout.splitlines() if line.startswith("perplexity increase"))
    assert row.split()[-1] == "MISSED"


@pytest.mark.parametrize(("bound", "passed"), [(0.001, True), (-0.5, False)])
def test_json_says_the_same(artifact: Path, bound: float, passed: bool) -> None:
    set_bounds(artifact, {"max_perplexity_increase": bound})
    result = verify(artifact, "--json")
    data = json.loads(result.stdout)

    assert data["passed"] is passed
    assert result.exit_code == (0 if passed else 1)
    assert {"name", "value", "bound", "passed"} == data["rows"][0].keys()


def test_one_flipped_byte_is_found(artifact: Path) -> None:
    weights = artifact / Artifact.open(artifact).engine().files[-1]
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    result = verify(artifact)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {weights}: ")
