"""Engines beside each other: works, ratios, classes, the page, the picture."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from enginewright.cli.bench.children import Sample
from enginewright.cli.bench.comparison import Comparison, Entrant, Result
from enginewright.cli.bench.plot import draw, place
from enginewright.cli.bench.quality import Quality, compare, windows
from enginewright.cli.bench.stats import Figure
from enginewright.cli.bench.turns import Samples
from enginewright.cli.bench.works import MEMORY, START, WORKS, prefill
from enginewright.runtime.artifact.manifest import LimitsEntry

GOOD = Quality(0.97, 10.05, 10.0, 2000)
POOR = Quality(0.97, 10.2, 10.0, 2000)
ENTRANTS = {
    "enginewright int4": Entrant("enginewright int4", True, 50_000_000, GOOD),
    "enginewright fast": Entrant("enginewright fast", True, 50_000_000, POOR),
    "peer int8": Entrant("peer int8", False, 90_000_000, GOOD),
    "peer int4": Entrant("peer int4", False, 40_000_000, POOR),
}
DECODE, START_UP = WORKS["decode-8"], WORKS["start"]


def sample(started: float = 0.0, **said: Any) -> Sample:
    return Sample(said, started, 1.0, None, None, 0.0)


def result(work: Any, **medians: float) -> Result:
    named = {name.replace("_", " "): value for name, value in medians.items()}
    figures = {name: Figure(name, work.unit, (value,)) for name, value in named.items()}
    return Result(work, ENTRANTS, figures)


def test_more_is_better_for_rates_and_less_for_times() -> None:
    rates = result(
        DECODE, enginewright_int4=300, enginewright_fast=900, peer_int8=200, peer_int4=400
    )
    times = result(
        START_UP, enginewright_int4=300, enginewright_fast=90, peer_int8=450, peer_int4=150
    )

    assert rates.leads() == {"peer int8": 1.5, "peer int4": 0.75}
    assert times.leads() == {"peer int8": 1.5, "peer int4": 0.5}
    assert (rates.best(ours=True), rates.best(ours=False)) == ("enginewright int4", "peer int8")
    assert rates.best(ours=False, lossy=True) == "peer int4"


def test_without_an_engine_of_ours_in_the_class_there_is_no_ratio() -> None:
    assert result(DECODE, enginewright_fast=900, peer_int8=200).leads() == {}


def test_a_ratio_of_nothing_is_none() -> None:
    assert math.isnan(MEMORY.ratio(10.0, -3.0))
    assert MEMORY.ratio(10.0, 30.0) == 3


def test_the_class_needs_both_the_tokens_and_the_perplexity() -> None:
    reference = {"best": [1, 2, 3, 4], "logprobs": [-1.0, -1.0, -2.0, -2.0]}
    same = compare(reference, reference)
    assert (same.top1, same.increase, same.near_lossless) == (1, 0, True)

    other = compare({"best": [1, 2, 3, 9], "logprobs": [-1.0, -1.0, -2.0, -2.1]}, reference)
    assert other.top1 == 0.75
    assert other.increase == pytest.approx(math.exp(0.025) - 1)
    assert not other.near_lossless
    assert not Quality(0.99, 9.8, 10.0, 100).near_lossless, "better than fp32 is not fp32 either"
    assert not Quality(0.949, 10.0, 10.0, 100).near_lossless
    assert (GOOD.grade, POOR.grade) == ("near-lossless", "lossy")


def test_the_text_is_cut_into_windows_of_nearly_one_size() -> None:
    whole = windows(lambda text: list(range(len(text))), 8192)
    assert {len(piece) for piece in whole[:-1]} == {512}
    assert len(whole[-1]) > 256
    assert max(len(piece) for piece in windows(lambda text: list(range(900)), 100)) == 100


@pytest.mark.parametrize("work", WORKS.values(), ids=lambda work: work.name)
def test_works_ask_for_what_fits_their_context(work: Any) -> None:
    asked = work.request(range(100, 200), threads=2)
    prompts = [asked[key] for key in ("prompt", "warm") if key in asked] + asked.get("prompts", [])
    turns = asked.get("turns", [])

    assert asked == work.request(range(100, 200), threads=2), "the same for every engine"
    assert len(asked.get("prompts", [0])) == work.rows
    assert max(map(len, prompts)) + asked.get("tokens", 1) <= work.context
    assert sum(map(len, turns)) + len(turns) * asked.get("tokens", 0) <= work.context


def test_figures_of_works() -> None:
    assert DECODE.figure(sample(rest_s=2.0), 0) == 8 * 64 / 2
    assert WORKS["decode-1"].figure(sample(rest_s=2.0), 0) == 64
    assert prefill(512).figure(sample(first_s=0.25, rest_s=0.0), 0) == 250
    assert START.figure(sample(started=10.0, reached=10.5), 0) == 500
    assert MEMORY.figure(sample(peak=150_000_000), 50_000_000) == 100
    assert WORKS["decode-32"].fits(LimitsEntry(200, 64), rows=32)
    assert not WORKS["decode-32"].fits(LimitsEntry(200, 64), rows=31)
    assert not WORKS["decode-at-8000"].fits(LimitsEntry(8000, 64), rows=32)


def comparison() -> Comparison:
    said = {"enginewright int4": 1.0, "peer int8": 2.0, "peer int4": 0.5}
    taken = {
        label: Samples([sample(rest_s=s)], 1, noisy=label == "peer int4")
        for label, s in said.items()
    }
    absent = {"other <peer>": "no wheel for this machine"}
    return Comparison("a model", 2, ENTRANTS, {DECODE.name: DECODE}, {DECODE.name: taken}, absent)


def test_the_page_names_classes_ratios_and_who_is_absent() -> None:
    page = "\n".join(comparison().page())
    rows = [" ".join(line.split()) for line in page.splitlines()]

    assert "peer int8 near-lossless 256 (256 - 256) 2.00x" in rows
    assert "peer int4 lossy 1024 (1024 - 1024) 0.50x" in rows
    assert "peer int4 0.970 10.200 +2.00% lossy" in rows
    assert any(r.endswith("512, enginewright int4 256, peer int8 2.00x") for r in rows)
    assert "not measured: other <peer>: no wheel for this machine" in rows
    assert "too few samples" in rows[-1]
    assert rows[-1].endswith("all are kept of peer int4")


def test_the_data_holds_samples_and_ratios() -> None:
    told = comparison().as_data()
    work = told["works"]["decode-8"]

    assert work["engines"]["peer int8"]["samples"] == [256]
    assert work["times_better"] == {"peer int8": 2, "peer int4": 0.5}
    assert (work["best_peer"], work["peers_in_class"]) == ("peer int8", "near-lossless")
    assert told["quality"]["peer int4"]["class"] == "lossy"
    assert told["not_measured"].keys() == {"other <peer>"}


def test_the_picture_is_svg_with_a_bar_for_each_peer() -> None:
    root = ET.fromstring(draw(comparison()))
    space = "{http://www.w3.org/2000/svg}"
    _background, *bars = root.iter(f"{space}rect")
    texts = {text.text for text in root.iter(f"{space}text")}

    assert root.tag == f"{space}svg"
    assert {"decode, 8 streams", "peer int8", "2.00x", "0.50x"} <= texts
    ends = [(float(b.get("x", 0)), float(b.get("x", 0)) + float(b.get("width", 0))) for b in bars]
    assert ends[0] == pytest.approx((place(1), place(2)), abs=0.11)
    assert ends[1] == pytest.approx((place(0.5), place(1)), abs=0.11)


def test_ratios_beyond_the_axis_end_at_its_ends() -> None:
    assert place(1000) == place(16) > place(2) > place(1) > place(0.001) == place(0.25)
    assert place(4) - place(2) == pytest.approx(place(2) - place(1))
