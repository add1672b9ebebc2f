"""``lint``: findings for people and as JSON, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginewright.cli.main import main


def lint(artifact: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["lint", str(artifact), *arguments])


def test_an_artifact_without_findings(tiny_artifact: Path) -> None:
    result = lint(tiny_artifact)

    assert result.exit_code == 0, result.output
    assert result.stdout == "errors: 0, warnings: 0, notes: 0\n"


def test_warnings_are_exit_code_0(tiny_artifact: Path) -> None:
    result = lint(tiny_artifact, "--prompt", "[INST] hi", "--prompt", "[assistant]")

    assert result.exit_code == 0, result.output
    assert "warning [foreign-chat-marks] prompt '[INST] hi': the prompt is" in result.stdout
    assert "\n    use chat(), or the format" in result.stdout
    assert result.stdout.endswith("errors: 0, warnings: 1, notes: 0\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_is_exit_code_1(tiny_artifact: Path, as_json: bool) -> None:
    arguments = ["--chat-template", "{{ raise_exception('no') }}", *(["--json"] * as_json)]
    result = lint(tiny_artifact, *arguments)

    assert result.exit_code == 1
    assert "refuses the messages: no" in result.stdout


def test_json_names_the_prompt_of_each_finding(tiny_artifact: Path) -> None:
    result = lint(tiny_artifact, "--json", "--prompt", "</s>")

    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["artifact"] == str(tiny_artifact)
    (finding,) = data["findings"]
    assert finding["code"] == "only-special-tokens"
    assert finding["level"] == "warning"
    assert finding["prompt"] == "</s>"
    assert finding["message"]
    assert finding["advice"]


def test_another_template_by_its_name(tiny_artifact: Path) -> None:
    result = lint(tiny_artifact, "--chat-template", "chatml")

    assert result.exit_code == 0, result.output
    assert "<|im_start|>, <|im_end|>, which the vocabulary does not hold" in result.stdout
    missing = lint(tiny_artifact, "--chat-template", "missing.jinja")
    assert missing.exit_code == 1
    assert missing.stderr.startswith("error: chat_template='missing.jinja' looks like a file path")
