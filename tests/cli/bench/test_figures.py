"""Workloads, figures, turns: the arithmetic of measuring, without measuring."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import click
import pytest

from enginewright.cli.bench.children import Sample
from enginewright.cli.bench.machine import Busy, disturbance, memory
from enginewright.cli.bench.stats import Figure, figures_data, shares_of
from enginewright.cli.bench.turns import remark, take_turns
from enginewright.cli.bench.workload import Workload, figures, make_workload
from enginewright.runtime.artifact.artifact import Artifact


def sample(disturbed: float = 0.0, **said: Any) -> Sample:
    told = {"load_s": 0.5, "first_token_s": 0.25, "decode_s": 2.0, "batch_s": 4.0} | said
    return Sample(told, 0.0, 1.0, 300_000_000, 120_000_000, disturbed)


WORK = Workload(
    threads=2,
    warm_ids=[1] * 512,
    prefill_ids=[2] * 512,
    decode_prompts=[[3] * 32] * 8,
    decode_tokens=128,
)


def test_figures_follow_from_what_the_worker_said() -> None:
    found = {figure.name: figure.median for figure in figures(WORK, [sample()])}

    assert found == {
        "load": 0.5,
        "first token of 512": 250,
        "prefill 512": 2048,
        "decode, 1 row": 64,
        "decode, 8 rows": 256,
        "peak memory": 300,
        "peak anonymous": 120,
    }


def test_a_figure_that_could_not_be_taken_is_left_out() -> None:
    unseen = dataclasses.replace(
        sample(batch_s=None, decode_s=-0.001), peak_rss=None, peak_anonymous=None
    )
    names = [figure.name for figure in figures(WORK, [unseen])]

    assert names == ["load", "first token of 512", "prefill 512"]


def test_a_figure_says_median_and_range() -> None:
    figure = Figure("decode", "tokens/s", (310.0, 290.0, 300.4))

    assert figure.cells() == ("decode (tokens/s)", "300", "290 - 310")
    assert figures_data([figure])["decode"]["samples"] == [310.0, 290.0, 300.4]


def test_a_workload_stays_within_the_engines_limits(tiny_artifact: Path) -> None:
    opened = Artifact.open(tiny_artifact)
    engine = opened.engine()
    work = make_workload(opened.manifest, engine, 1, 16, 8)

    ids = {*work.warm_ids, *work.prefill_ids, *chain.from_iterable(work.decode_prompts)}
    assert ids <= set(range(engine.vocab_size)) - set(opened.manifest.eos_token_ids)
    assert work.warm_ids != work.prefill_ids, "a prefix cache would make prefill look free"
    assert len(work.decode_prompts) in (1, 8)
    assert len(work.decode_prompts) <= engine.limits.max_batch
    assert work == make_workload(opened.manifest, engine, 1, 16, 8), "the same for every engine"


@pytest.mark.parametrize(
    ("prompt_tokens", "decode_tokens", "said"),
    [(10**7, 1, "--prompt-tokens 10000000"), (16, 10**7, "--decode-tokens 10000000")],
)
def test_too_large_a_workload_is_wrong_usage(
    tiny_artifact: Path, prompt_tokens: int, decode_tokens: int, said: str
) -> None:
    opened = Artifact.open(tiny_artifact)
    with pytest.raises(click.UsageError, match=said):
        make_workload(opened.manifest, opened.engine(), 1, prompt_tokens, decode_tokens)


def recorder(order: list[str], name: str, disturbed: list[float]) -> Callable[[], Sample]:
    shares = iter(disturbed)

    def take() -> Sample:
        order.append(name)
        return sample(next(shares, 0.0))

    return take


def test_engines_are_sampled_in_turns() -> None:
    order: list[str] = []
    takes = {name: recorder(order, name, []) for name in "AB"}
    taken = take_turns(takes, 3, "test")

    assert order == ["A", "B"] * 3
    assert [len(samples.used) for samples in taken.values()] == [3, 3]
    assert remark("A", taken["A"]) is None


def test_disturbed_samples_are_taken_again_for_all() -> None:
    order: list[str] = []
    takes = {"A": recorder(order, "A", [0.5]), "B": recorder(order, "B", [])}
    taken = take_turns(takes, 2, "test")

    assert order == ["A", "B"] * 3
    assert len(taken["A"].used) == 2
    assert all(one.disturbance == 0 for one in taken["A"].used)
    assert "1 samples" in str(remark("A", taken["A"]))
    assert "left out" in str(remark("A", taken["A"]))


def test_on_a_busy_machine_all_samples_are_kept_and_that_is_said() -> None:
    takes = {"A": recorder([], "A", [0.9] * 10)}
    taken = take_turns(takes, 2, "test")["A"]

    assert (len(taken.used), taken.noisy) == (4, True)
    assert "too few were clean" in str(remark("A", taken))


def test_percentiles_are_taken_within_each_sample() -> None:
    found = shares_of("gaps", [[i / 1000 for i in range(1, 102)], [], [0.5]])

    assert [one.name for one in found] == ["gaps, p50", "gaps, p90", "gaps, p99"]
    assert [one.samples[0] for one in found] == pytest.approx([51, 91, 100])
    assert [one.samples[1] for one in found] == [500, 500, 500]
    assert shares_of("gaps", [[]]) == []


def test_disturbance_is_what_others_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    assert disturbance(Busy(10, 0), Busy(12, 0), own=2.0, wall=1.0) == 0
    assert disturbance(Busy(10, 0), Busy(12, 0.5), own=1.5, wall=1.0) == pytest.approx(0.5)
    assert disturbance(None, Busy(12, 0), own=0, wall=1.0) == 0


def test_the_memory_of_a_process_that_is_gone_is_unknown() -> None:
    assert memory(2**22 + 1) == {}
