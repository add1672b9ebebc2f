"""``bench reuse``: its arithmetic, its workers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginewright.cli.bench.children import Sample
from enginewright.cli.bench.reuse import OWN_TOKENS, prompt_work, take
from enginewright.cli.bench.reuse_report import (
    OFF,
    ON,
    beam_figures,
    beam_table,
    prompt_figures,
    ratios,
    reuse_table,
)
from enginewright.cli.main import main
from enginewright.runtime.artifact.artifact import Artifact

SEARCH = {
    "steps": 50,
    "engine_s": 0.8,
    "copy_s": 0.05,
    "host_s": 0.15,
    "copies": 100,
    "tokens": 500,
    "token_bytes": 2000,
    "fork_s": 0.003,
    "fork_tokens": 720,
}


def prompt_samples(*seconds: float) -> list[Sample]:
    said = [dict.fromkeys(("prompts_s", "greedy_s", "sampled_s"), one) for one in seconds]
    return [Sample(one, 0.0, 1.0, None, None, 0.0) for one in said]


def test_ratios_are_of_the_medians() -> None:
    taken = {ON: prompt_samples(1.0, 2.0, 9.0), OFF: prompt_samples(3.0, 5.0, 4.0)}
    found = {name: prompt_figures(16, 10, samples) for name, samples in taken.items()}

    assert list(ratios(found).values()) == [2.0, 2.0, 2.0]
    line = reuse_table(found).splitlines()[2]
    assert " ".join(line.split()) == "16 prompts (s) 2 (1 - 9) 4 (3 - 5) 2.00x"


def test_a_search_is_told_by_the_step() -> None:
    found = beam_figures([SEARCH, SEARCH | {"copy_s": 0.1}, SEARCH | {"copy_s": 0.05}])
    told = {f"{one.name} ({one.unit})": one.median for one in found}

    assert told == pytest.approx(
        {
            "engine (ms)": 16,
            "cache copies (ms)": 1,
            "host (ms)": 3,
            "share of cache copies (%)": 5,
            "copies (a step)": 2,
            "tokens (a copy)": 5,
            "moved (kB a step)": 20,
            "the prompt's copies (ms, once)": 3,
        }
    )
    assert max(found[1].samples) == pytest.approx(2)
    assert "hf, 4 beams" in beam_table({"vllm, 4 beams": found, "hf, 4 beams": found})


def test_a_search_without_copies_moves_nothing() -> None:
    (step,) = [SEARCH | {"copies": 0, "tokens": 0, "copy_s": 0.0}]
    told = {one.name: one.median for one in beam_figures([step])}
    assert (told["copies"], told["tokens"], told["moved"]) == (0, 0, 0)


def test_prompts_share_only_their_beginning(tiny_artifact: Path) -> None:
    opened = Artifact.open(tiny_artifact)
    work = prompt_work(opened, prompts=3, prefix=50, turns=2)

    prompts = work["prompts"]
    assert [len(ids) for ids in prompts] == [50 + OWN_TOKENS] * 3
    assert len({tuple(ids[:50]) for ids in prompts}) == 1
    assert len({tuple(ids[50:]) for ids in prompts}) == 3
    assert [len(ids) for ids in work["turns"]] == [60, 30]
    assert not set().union(*prompts) & set(opened.manifest.eos_token_ids)


@pytest.mark.parametrize("caching", [True, False])
def test_the_worker_takes_over_what_is_shared_or_nothing(
    tiny_artifact: Path, caching: bool
) -> None:
    work = prompt_work(Artifact.open(tiny_artifact), prompts=3, prefix=100, turns=2)
    work |= {"model": str(tiny_artifact), "threads": 1, "prefix_caching": caching}
    said = take("prompt_reuse.py", work)().said

    assert said["cached_tokens"] == (2 * 100 if caching else 0)
    assert all(said[name] > 0 for name in ("prompts_s", "greedy_s", "sampled_s"))


@pytest.mark.parametrize("algorithm", ["vllm", "hf"])
def test_the_worker_tells_the_steps_of_beams(tiny_artifact: Path, algorithm: str) -> None:
    work = {
        "model": str(tiny_artifact),
        "threads": 1,
        "prompt_tokens": 40,
        "output_tokens": 20,
        "searches": [{"beam_width": 3, "algorithm": algorithm}],
    }
    (said,) = take("beam_steps.py", work)().said["searches"]

    # The first token comes from the prompt's step; of the other 19, the first step is left out.
    assert said["steps"] == 18
    assert said["fork_tokens"] == 2 * 40
    assert 0 < said["copies"] <= said["tokens"] < said["copies"] * 60
    assert said["engine_s"] > said["copy_s"] > 0
    assert said["host_s"] > 0


def test_the_verb_prints_both_tables(tiny_artifact: Path) -> None:
    small = ["--prompts", "2", "--prefix", "40", "--turns", "2", "--width", "2"]
    arguments = ["bench", "reuse", str(tiny_artifact), *small, "--runs", "1", "--threads", "1"]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)

    assert data["reuse"].keys() == {ON, OFF}
    names = {"2 prompts", "first tokens of 2 turns, greedy", "first tokens of 2 turns, sampled"}
    assert data["off_over_on"].keys() == data["reuse"][ON].keys() == names
    assert data["beams"].keys() == {"vllm, 2 beams", "hf, 2 beams"}
    assert all(len(search) == 8 for search in data["beams"].values())


@pytest.mark.parametrize(
    ("option", "value", "most"),
    [("--prompts", 25, 24), ("--width", 25, 24), ("--prefix", 577, 576), ("--turns", 9, 8)],
)
def test_more_than_the_engine_takes_is_wrong_usage(
    tiny_artifact: Path, option: str, value: int, most: int
) -> None:
    fitting = {"--prompts": 2, "--prefix": 10, "--turns": 1, "--width": 2} | {option: value}
    arguments = [str(word) for pair in fitting.items() for word in pair]
    result = CliRunner().invoke(main, ["bench", "reuse", str(tiny_artifact), *arguments])
    assert result.exit_code == 2
    assert f"{option} {value}: this engine takes at most {most}" in result.output
