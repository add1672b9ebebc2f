"""``diff --gate``: what is worse than the gate allows is named, and the exit code is 1."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from enginewright.cli.diff.gate import LIMITS, SECTIONS, Gate, read_gate
from enginewright.cli.diff.measures import Kind, Measure, Plans
from enginewright.cli.main import main
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import SettingsError

Alter = Callable[..., Path]


def hold(a: Path, b: Path, gate: str, *options: str) -> Result:
    file = a.parent / "gate.yaml"
    file.write_text(gate)
    return CliRunner().invoke(main, ["diff", str(a), str(b), "--gate", str(file), *options])


@pytest.mark.parametrize(("factor", "passed"), [(1.004, True), (1.006, False), (0.9, True)])
def test_perplexity(tiny_artifact: Path, alter: Alter, factor: float, passed: bool) -> None:
    built = Artifact.open(tiny_artifact).manifest.conformance["plain"]["measures"]["perplexity"]
    other = alter(perplexity=built * factor)
    result = hold(tiny_artifact, other, "max_worse: {perplexity: 0.5%}")

    assert result.exit_code == (0 if passed else 1), result.output
    assert ("gate: passed" in result.stdout) is passed
    breach = "  perplexity, plan plain: worse by 0.600%, at most 0.500%"
    assert (breach in result.stdout.splitlines()) is not passed


def test_a_lower_limit(tiny_artifact: Path, alter: Alter) -> None:
    def change(manifest: Any) -> dict[str, Any]:
        [engine] = manifest.engines
        limits = dataclasses.replace(engine.limits, max_context=500)
        return {"engines": (dataclasses.replace(engine, limits=limits),)}

    gate = "no_lower: [max_context, max_batch]"
    result = hold(tiny_artifact, alter(change), gate, "--json")

    assert result.exit_code == 1
    judged = json.loads(result.stdout)["gate"]
    assert judged == {
        "passed": False,
        "breaches": ["plain.max_context is lower: 600 in A, 500 in B"],
    }


def test_a_limit_may_grow(tiny_artifact: Path, alter: Alter) -> None:
    def change(manifest: Any) -> dict[str, Any]:
        [engine] = manifest.engines
        limits = dataclasses.replace(engine.limits, max_context=500)
        return {"engines": (dataclasses.replace(engine, limits=limits),)}

    result = hold(alter(change), tiny_artifact, "no_lower: [max_context]")
    assert result.exit_code == 0, result.output


def with_plans(*names: str, **measures: float) -> Callable[[Any], dict[str, Any]]:
    """The one engine under several names; the first has other measures."""

    def change(manifest: Any) -> dict[str, Any]:
        [engine] = manifest.engines
        report = manifest.conformance[engine.plan]
        first = {**report, "measures": {**report["measures"], **measures}}
        return {
            "engines": tuple(dataclasses.replace(engine, plan=name) for name in names),
            "conformance": {**dict.fromkeys(names, report), names[0]: first},
        }

    return change


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ("no_lower: [max_batch]", False),
        ("max_worse: {kv_bytes_per_token: 0}", False),
        ("max_worse: {size: 1%}", True),
        ("unchanged: [template]", True),
    ],
)
def test_a_plan_that_was_lost(tiny_artifact: Path, alter: Alter, gate: str, passed: bool) -> None:
    result = hold(alter(with_plans("plain", "native")), tiny_artifact, gate)

    assert result.exit_code == (0 if passed else 1), result.output
    assert ("  plan native is only in A" in result.stdout.splitlines()) is not passed


def test_a_plan_that_was_added_is_not_lower(tiny_artifact: Path, alter: Alter) -> None:
    gate = "no_lower: [max_context, max_batch]"
    result = hold(tiny_artifact, alter(with_plans("plain", "native")), gate)
    assert result.exit_code == 0, result.output


def test_the_preferred_plans_are_compared(tiny_artifact: Path, alter: Alter) -> None:
    """B has A's plan, as good as ever, but runs another one."""
    other = alter(with_plans("native", "plain", top1_agreement=0.1))
    result = hold(tiny_artifact, other, "max_worse: {top1_agreement: 10%}")

    assert result.exit_code == 1
    assert "  top1_agreement, plan plain / native: worse by 0.9, at most 0.1" in result.stdout


def test_what_must_stay(tiny_artifact: Path, alter: Alter) -> None:
    other = alter(
        lambda manifest: {"eos_token_ids": (1, 5)}, {"chat_template.jinja": b"{{ messages }}"}
    )
    result = hold(tiny_artifact, other, "unchanged: [end tokens, template, tools]")

    assert result.exit_code == 1
    assert "  end tokens was changed" in result.stdout
    assert "  template was changed: a golden conversation is rendered otherwise" in result.stdout
    assert "tools was changed" not in result.stdout


def test_a_gate_on_speed_has_it_measured(tiny_artifact: Path) -> None:
    options = ("--runs", "1", "--threads", "1", "--json")
    told = hold(tiny_artifact, tiny_artifact, "max_worse: {decode-1: 100000%}", *options)

    assert told.exit_code == 0, told.output
    found = [each for each in json.loads(told.stdout)["measures"] if each["name"] == "decode-1"]
    assert found[0]["a"] > 0
    impossible = hold(tiny_artifact, tiny_artifact, "max_worse: {decode-1: -100000%}", *options)
    assert impossible.exit_code == 1, "B cannot be a thousand times faster than itself"


def test_what_was_not_measured_is_a_breach() -> None:
    kind = Kind("tokens/s", more_is_better=True)
    gate = Gate({"decode-1": 0.1, "decode-8": 0.1})
    taken = [Measure("decode-1", kind, None, None, reason="no GPU")]

    assert gate.breaches([], False, taken, Plans()) == [
        "decode-1: not measured (no GPU)",
        "decode-8: not measured",
    ]


@pytest.mark.parametrize(("b", "worse"), [(90.0, 0.1), (110.0, -0.1), (100.0, 0.0)])
def test_slower_is_worse(b: float, worse: float) -> None:
    kind = Kind("tokens/s", more_is_better=True)
    assert Measure("decode-1", kind, 100.0, b).worse == pytest.approx(worse)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_wrose: {}", "did you mean max_worse?"),
        ("max_worse: {perplexty: 1%}", "max_worse.perplexty: is unknown; did you mean perplexity?"),
        ("max_worse: {perplexity: much}", "max_worse.perplexity: 'much' is no share"),
        ("max_worse: {perplexity: true}", "is no share"),
        ("max_worse: {perplexity: nan}", "is no share"),
        ("max_worse: [perplexity]", "max_worse: ['perplexity'] is not legal; it must map"),
        ("max_worse: 0", "max_worse: 0 is not legal; it must map"),
        ("max_worse:", "max_worse: None is not legal; it must map"),
        ("max_worse: {}", "max_worse: {} is not legal; it must map"),
        ("{}", "holds nothing; give some of max_worse, no_lower, unchanged"),
        ("max_worse: {size: 1%}\nmax_worse: {size: 90%}", "the key 'max_worse' is given twice"),
        ("max_worse: {size: 1%, size: 90%}", "the key 'size' is given twice"),
        ("no_lower: [max_contxt]", "did you mean max_context?"),
        ("no_lower: max_context", "no_lower: 'max_context' is not legal; it must be a list"),
        ('no_lower: ""', "no_lower: '' is not legal; it must be a list of some of max_context"),
        ("unchanged: false", "unchanged: False is not legal; it must be a list of some of source"),
        ("unchanged: []", "unchanged: [] is not legal"),
        ("unchanged: [tempalte]", "did you mean template?"),
        ("[1, 2]", "must be a mapping"),
        ("{", "not YAML"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_wrong_gate_is_named(tiny_artifact: Path, text: str, said: str) -> None:
    result = hold(tiny_artifact, tiny_artifact, text)

    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr


def test_a_gate_may_be_json(tiny_artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    file.write_text('{"max_worse": {"size": "1%"}}')
    arguments = ["diff", str(tiny_artifact), str(tiny_artifact), "--gate", str(file)]
    assert CliRunner().invoke(main, arguments).exit_code == 0


def test_a_key_of_json_that_is_given_twice(tiny_artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    file.write_text('{"max_worse": {"size": "1%"}, "max_worse": {"size": "90%"}}')
    arguments = ["diff", str(tiny_artifact), str(tiny_artifact), "--gate", str(file)]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the key 'max_worse' is given twice" in result.stderr


def test_a_gate_that_is_not_there(tiny_artifact: Path, tmp_path: Path) -> None:
    arguments = ["diff", str(tiny_artifact), str(tiny_artifact), "--gate", str(tmp_path / "no")]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (1, "")


def test_every_name_is_legal() -> None:
    gate = read_gate({"no_lower": list(LIMITS), "unchanged": list(SECTIONS)}, "here")
    assert gate.unchanged == SECTIONS
    with pytest.raises(SettingsError):
        read_gate({"unchanged": ["weights"]}, "here")
