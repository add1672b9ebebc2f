"""``bench sampler``: its arithmetic, its worker, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginewright.cli.bench.children import Sample
from enginewright.cli.bench.sampler import (
    DECODE_TOKENS,
    MIXES,
    Size,
    report,
    sampler_figures,
    step_figure,
    take_sampler,
)
from enginewright.cli.main import main
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.sampling.params import SamplingParams

SMALL = ["--rows", "2", "--steps", "2", "--runs", "1", "--threads", "1"]


def sample(**said: Any) -> Sample:
    return Sample(said, 0.0, 1.0, None, None, 0.0)


def test_shares_are_of_the_decode_step() -> None:
    found = sampler_figures([sample(**dict.fromkeys(MIXES, 0.002))])
    step = step_figure(32, [sample(decode_s=None, batch_s=DECODE_TOKENS * 0.1)])
    lines = report(found, step).splitlines()

    assert step.median == pytest.approx(100)
    assert len(lines) == 2 + len(MIXES) + 1
    assert all(line.split()[-1] == "2.0%" for line in lines[2:-1])
    assert lines[-1].startswith("decode step, 32 rows (ms)")
    assert "%" not in report(found, None)


def test_one_row_has_the_time_of_one_row() -> None:
    told = sample(decode_s=DECODE_TOKENS * 0.01, batch_s=None)
    assert step_figure(1, [told]).median == pytest.approx(10)


@pytest.mark.parametrize("name", MIXES)
def test_mixes_are_legal(name: str) -> None:
    params = SamplingParams(**MIXES[name])
    assert params.greedy == (name == "greedy")
    assert (params.repetition_penalty != 1) == ("penalties" in name)
    assert (params.top_k > 0, params.top_p < 1) == ("top-k" in name, "top-p" in name)


def test_the_worker_times_every_mix() -> None:
    said = take_sampler(Size(vocabulary=300, rows=3, steps=2, output_tokens=5))().said
    assert list(said) == list(MIXES)
    assert all(seconds > 0 for seconds in said.values())


def test_with_an_artifact_there_are_shares(tiny_artifact: Path) -> None:
    arguments = ["bench", "sampler", str(tiny_artifact), *SMALL, "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)

    assert data["figures"].keys() == {*MIXES, "decode step, 2 rows"}
    assert data["share_of_step"].keys() == set(MIXES)
    assert data["vocabulary"] == Artifact.open(tiny_artifact).engine().vocab_size


def test_without_an_artifact_there_is_the_sampler_alone() -> None:
    result = CliRunner().invoke(main, ["bench", "sampler", "--vocabulary", "500", *SMALL])
    assert result.exit_code == 0, result.output
    assert "vocabulary of 500, 2 rows" in result.stdout
    assert "decode step" not in result.stdout


def test_more_rows_than_the_engine_takes_are_wrong_usage(tiny_artifact: Path) -> None:
    arguments = ["bench", "sampler", str(tiny_artifact), "--rows", "1000"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--rows 1000: this engine takes at most" in result.output
