"""``bench speculation``: its arithmetic, its worker, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from enginewright.cli.bench.children import Sample
from enginewright.cli.bench.speculation import ALL, QUESTIONS, figures
from enginewright.cli.main import main

ANSWER = {
    "plain_s": [1.0, 3.0],
    "fast_s": [0.5, 1.5],
    "tokens": 101,
    "same": True,
    "drafted": 80,
    "accepted": 60,
}


def samples(*answers: dict[str, Any]) -> list[Sample]:
    said = [{"answers": [ANSWER | each] * (len(QUESTIONS) + 1)} for each in answers]
    return [Sample(one, 0.0, 1.0, None, None, 0.0) for one in said]


def test_a_sample_is_told_by_the_token() -> None:
    told = {one.name: one for one in figures(samples({}, {"fast_s": [1.0, 1.0], "accepted": 40}))}
    assert told["repeat, plain"].samples == (20.0, 20.0)
    assert told["repeat, speculated"].samples == (10.0, 10.0)
    assert told["chat, speed"].samples == (2.0, 2.0)
    assert told["chat, accepted"].samples == (75.0, 50.0)
    assert told[f"{ALL}, speed"].samples == (2.0, 2.0)


def test_what_was_never_drafted_has_no_share() -> None:
    told = {one.name for one in figures(samples({"drafted": 0, "accepted": 0}))}
    assert "chat, accepted" not in told
    assert "chat, speed" in told


def test_an_answer_that_changed_is_an_error() -> None:
    with pytest.raises(click.ClickException, match="repeat: speculation changed the answer"):
        figures(samples({"same": False}))


def test_a_plan_that_drafts_nothing_is_not_measured(tiny_artifact: Path) -> None:
    arguments = ["bench", "speculation", str(tiny_artifact), "--runs", "1", "--threads", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "plan 'plain' drafts nothing for greedy answers" in result.stderr
