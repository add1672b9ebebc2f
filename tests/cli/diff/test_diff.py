"""``diff``: what differs is told, and nothing else; quality, size and speed are compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from enginewright.cli.bench.children import Sample
from enginewright.cli.bench.entrants import Runner
from enginewright.cli.diff.conversations import CONVERSATIONS
from enginewright.cli.main import main
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import SamplingDefault

Alter = Callable[..., Path]


def diff(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["diff", *map(str, arguments)])


def data(*arguments: object) -> dict[str, Any]:
    result = diff(*arguments, "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_an_artifact_beside_itself(tiny_artifact: Path) -> None:
    told = data(tiny_artifact, tiny_artifact)

    assert told["changes"] == told["renderings"] == []
    assert {measure["worse"] for measure in told["measures"]} == {0}
    assert told["a"]["digest"] == told["b"]["digest"]
    page = diff(tiny_artifact, tiny_artifact).stdout
    assert f"{len(CONVERSATIONS)} golden conversations are rendered alike" in page


def test_every_section_that_changed_is_told(tiny_artifact: Path, alter: Alter) -> None:
    def change(manifest: Any) -> dict[str, Any]:
        [engine] = manifest.engines
        limits = dataclasses.replace(engine.limits, max_batch=4)
        return {
            "engines": (dataclasses.replace(engine, limits=limits, precision="int8"),),
            "eos_token_ids": (1, 5),
            "sampling_defaults": {"top_p": SamplingDefault(0.5, "generation_config.json: top_p")},
            "tools": {**manifest.tools, "onnx": "0.0.1"},
            "recipe": {**manifest.recipe, "precision": "int8"},
        }

    told = data(tiny_artifact, alter(change))
    found = {(each["section"], each["name"]): (each["a"], each["b"]) for each in told["changes"]}

    assert found == {
        ("recipe", "precision"): ("fp32", "int8"),
        ("limits", "plain.max_batch"): (24, 4),
        ("engines", "plain.precision"): ("fp32", "int8"),
        ("end tokens", "5"): (None, "#"),
        ("sampling defaults", "top_p"): (None, 0.5),
        ("tools", "onnx"): (Artifact.open(tiny_artifact).manifest.tools["onnx"], "0.0.1"),
    }


def test_a_template_is_told_by_what_it_renders(tiny_artifact: Path, alter: Alter) -> None:
    text = (tiny_artifact / "chat_template.jinja").read_text("utf-8")
    other = alter(files={"chat_template.jinja": text.replace("[assistant]", "[model]").encode()})
    told = data(tiny_artifact, other)

    differing = {each["conversation"] for each in told["renderings"]}
    assert "a question" in differing
    assert "a question, to be trained on" not in differing, "it has no generation prompt"
    page = diff(tiny_artifact, other).stdout
    assert "[user]What is the capital of France?</s>[assistant]" in page
    assert "[user]What is the capital of France?</s>[model]" in page


def test_a_template_of_other_bytes_that_renders_alike(tiny_artifact: Path, alter: Alter) -> None:
    text = (tiny_artifact / "chat_template.jinja").read_bytes()
    told = data(tiny_artifact, alter(files={"chat_template.jinja": b"{# a remark #}" + text}))

    assert [each["section"] for each in told["changes"]] == ["tokenizer and template"]
    assert told["renderings"] == []


def test_a_template_that_refuses_is_a_difference(tiny_artifact: Path, alter: Alter) -> None:
    source = b"{{ raise_exception('no') }}"
    told = data(tiny_artifact, alter(files={"chat_template.jinja": source}))

    assert len(told["renderings"]) == len(CONVERSATIONS)
    assert all("refused: " in each["b"] for each in told["renderings"])


def test_quality_is_what_the_builds_measured(tiny_artifact: Path, alter: Alter) -> None:
    built = Artifact.open(tiny_artifact).manifest.conformance["plain"]["measures"]
    other = alter(perplexity=built["perplexity"] * 1.02, mean_kl=0.25)
    found = {each["name"]: each for each in data(tiny_artifact, other)["measures"]}

    assert found["perplexity"]["worse"] == pytest.approx(0.02)
    assert found["mean_kl"]["worse"] == pytest.approx(0.25), "a difference, no share"
    assert "worse by 2.00%" in diff(tiny_artifact, other).stdout


def test_files_that_are_shared_count_once(tiny_artifact: Path, alter: Alter) -> None:
    weights = (tiny_artifact / "engine" / "weights.bin").read_bytes()
    other = alter(files={"engine/again.bin": weights})
    found = {each["name"]: each for each in data(tiny_artifact, other)["measures"]}

    assert found["size"]["a"] == found["size"]["b"]


def test_scores_are_taken_by_running_both(tiny_artifact: Path, alter: Alter) -> None:
    built = Artifact.open(tiny_artifact).manifest.conformance["plain"]["measures"]
    other = alter(perplexity=1.0)
    found = {each["name"]: each for each in data(tiny_artifact, other, "--score")["measures"]}

    assert found["perplexity"]["b"] == pytest.approx(built["perplexity"], rel=1e-6)


def test_artifacts_of_other_tokens_have_no_perplexity_in_common(
    tiny_artifact: Path, alter: Alter
) -> None:
    from enginewright.runtime.conformance import REFERENCE_FILE, Reference

    reference = Reference.load(tiny_artifact / REFERENCE_FILE)
    shifted = dataclasses.replace(reference, text_ids=reference.text_ids + 1)
    place = tiny_artifact.parent / "shifted.npz"
    shifted.save(place)
    other = alter(files={REFERENCE_FILE: place.read_bytes()})
    found = {each["name"]: each for each in data(tiny_artifact, other)["measures"]}

    assert (found["perplexity"]["worse"], found["perplexity"]["remark"]) == (
        None,
        "the two were measured on different tokens",
    )
    assert found["mean_kl"]["remark"] == "each against its own model"
    refused = diff(tiny_artifact, other, "--score")
    assert refused.exit_code == 1
    assert "different references" in refused.stderr


def test_speed_is_taken_in_turns(tiny_artifact: Path) -> None:
    told = data(tiny_artifact, tiny_artifact, "--speed", "--runs", "1", "--threads", "1")
    found = {each["name"]: each for each in told["measures"]}

    for name in ("decode-1", "decode-8", "prefill-512", "start"):
        assert found[name]["a"] > 0, found[name]
        assert found[name]["b"] > 0, found[name]
        assert found[name]["plan"] == "plain"
    assert "decode-32" not in found


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [([], None), (["--no-native-code"], False), (["--allow-native-code"], True)],
)
def test_speed_runs_what_code_it_may(
    tiny_artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    allowed: bool | None,
) -> None:
    """What the workers are asked for; each side answers with the plan that it ran."""
    asked = []

    def take(runner: Runner, request: dict[str, Any]) -> Sample:
        asked.append(request["options"])
        plan = "native" if runner.entrant.label == "A" else "plain"
        return Sample({"plan": plan, "rest_s": 1.0}, 0.0, 1.0, None, None, 0.0)

    monkeypatch.setattr(Runner, "take", take)
    monkeypatch.setattr("enginewright.cli.diff.speed.USUAL", ("decode-1",))
    options = ("--speed", "--runs", "1", *flags)
    [found] = [
        each
        for each in data(tiny_artifact, tiny_artifact, *options)["measures"]
        if each["name"] == "decode-1"
    ]
    assert asked == [{"allow_native_code": allowed}] * 2
    assert found["plan"] == "native / plain"
    page = diff(tiny_artifact, tiny_artifact, *options).stdout
    assert "decode-1, native / plain (tokens/s)" in page


def test_a_speed_beyond_the_limits_is_not_measured(tiny_artifact: Path, alter: Alter) -> None:
    def change(manifest: Any) -> dict[str, Any]:
        [engine] = manifest.engines
        limits = dataclasses.replace(engine.limits, max_context=100)
        return {"engines": (dataclasses.replace(engine, limits=limits),)}

    told = data(tiny_artifact, alter(change), "--speed", "--runs", "1")
    found = {each["name"]: each for each in told["measures"]}
    assert found["decode-1"]["a"] is None
    assert "was built for less" in found["decode-1"]["remark"]
