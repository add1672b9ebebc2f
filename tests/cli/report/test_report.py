"""``report``: the page says what manifest and evidence hold, and needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from enginewright.cli.main import main
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.report.charts import Axes, bars, lines

LATENCY = {
    "artifact": "tiny",
    "precision": "fp32",
    "threads": 2,
    "machine": {"processor": "A processor", "cores": 2},
    "figures": {
        "between tokens at 64, p50": {"unit": "ms", "median": 10, "min": 9, "max": 11},
        "between tokens at 512, p50": {"unit": "ms", "median": 20, "min": 9, "max": 21},
        "between tokens at 512, p99": {"unit": "ms", "median": 90, "min": 9, "max": 99},
    },
}
THROUGHPUT = {
    **LATENCY,
    "figures": {
        "1 stream": {"unit": "tokens/s", "median": 100, "min": 90, "max": 110},
        "8 streams": {"unit": "tokens/s", "median": 400, "min": 390, "max": 410},
    },
}


class Page(HTMLParser):
    """Tags by name, with attributes; all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def ids(self) -> set[str | None]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def page(*arguments: object) -> Page:
    result = report(*arguments)
    assert result.exit_code == 0, result.output
    return Page(Path(result.stdout.strip()).read_text("utf-8"))


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_artifact, tmp_path / "artifact")


@pytest.fixture
def bench(tmp_path: Path) -> list[str]:
    found = []
    for name, told in (("latency", LATENCY), ("throughput", THROUGHPUT)):
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
        found += ["--bench", str(tmp_path / f"{name}.json")]
    return found


def test_the_build_wrote_one(tiny_artifact: Path) -> None:
    text = (tiny_artifact / "evidence" / "report.html").read_text("utf-8")
    assert {"source", "conformance", "memory", "graph", "files", "plot-kl"} <= Page(text).ids()
    assert Artifact.open(tiny_artifact).digest() in text
    assert (tiny_artifact / "evidence" / "bom.cdx.json").is_file()


def test_it_says_what_the_manifest_says(artifact: Path) -> None:
    digest = Artifact.open(artifact).digest()
    found = page(artifact)
    manifest = Artifact.open(artifact, "always").manifest

    assert digest == Artifact.open(artifact).digest(), "it lies outside the hashes"
    for name, entry in manifest.files.items():
        assert name in found.text
        assert entry.sha256 in found.text
    for row in manifest.conformance["plain"]["rows"]:
        assert row["name"] in found.text
        assert f"{row['value']:.6g}" in found.text
    assert manifest.source.digest in found.text
    assert f"transformers {manifest.tools['transformers']}" in found.text
    assert "It keeps to all bounds of the recipe" in found.text


def test_every_pass_is_told_with_what_it_changed(artifact: Path) -> None:
    found = page(artifact)
    lowering = json.loads((artifact / "evidence" / "lowering.json").read_text("utf-8"))

    assert [each["pass"] for each in lowering["passes"]][:3] == [
        "export",
        "simplify",
        "canonical_linear",
    ]
    for each in lowering["passes"][1:]:
        assert each["pass"] in found.text
    for change in ("CachedAttention 2 → 0", "GroupQueryAttention 0 → 2"):
        assert change in re.sub(r"\s+", " ", found.text)


def test_links_lead_to_files(artifact: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "pages" / "tiny.html"
    for place in (artifact / "evidence" / "report.html", elsewhere):
        found = page(artifact, "-o", place)
        links = {attributes["href"] for tag, attributes in found.tags if tag == "a"}
        assert "manifest.json" in {Path(str(link)).name for link in links}
        for link in links:
            assert (place.parent / str(link)).resolve().is_file(), link


def test_the_page_needs_nothing_else(artifact: Path, bench: list[str]) -> None:
    found = page(artifact, *bench)
    tags = {tag for tag, _ in found.tags}

    assert not tags & {"script", "link", "img", "iframe", "object", "video"}
    assert not any("src" in attributes for _, attributes in found.tags)
    text = (artifact / "evidence" / "report.html").read_text("utf-8")
    assert not re.findall(r"url\(|@import", text)
    assert set(re.findall(r"https?://[^\"< ]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_measurements_become_plots(artifact: Path, bench: list[str]) -> None:
    assert "plot-decode" not in page(artifact).ids()
    found = page(artifact, *bench)
    assert {"plot-decode", "plot-throughput"} <= found.ids()
    assert "A processor" in found.text


def test_others_are_seen_beside_it(artifact: Path, tiny_artifact: Path) -> None:
    other = tiny_artifact.name
    assert f"{other}: fp32 plain" in page(artifact, "--beside", tiny_artifact).text


def test_another_model_is_not_seen_beside_it(artifact: Path, tmp_path: Path) -> None:
    other = shutil.copytree(artifact, tmp_path / "other")
    manifest = Artifact.open(other).manifest
    source = dataclasses.replace(manifest.source, digest="sha256:0")
    changed = dataclasses.replace(manifest, source=source)
    (other / "manifest.json").write_text(changed.to_json(), "utf-8")
    result = report(artifact, "--beside", other)
    assert result.exit_code == 1
    assert "another model" in result.stderr


def test_a_missed_bound_is_told(artifact: Path) -> None:
    manifest = Artifact.open(artifact).manifest
    told = json.loads(json.dumps(manifest.conformance))
    told["plain"]["rows"][1] |= {"passed": False, "bound": ">= 2"}
    changed = dataclasses.replace(manifest, conformance=told)
    (artifact / "manifest.json").write_text(changed.to_json(), "utf-8")
    assert "Of the recipe's bounds it missed: top-1 agreement." in page(artifact).text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("build.json", {"stages": 3}),
        ("build.json", {"stages": {"compile": {"seconds": "long"}}}),
        ("lowering.json", {"passes": [{}]}),
        ("lowering.json", {"passes": 3}),
        ("lowering.json", {"matrices": {"a": 1}}),
    ],
)
def test_evidence_of_another_form_is_named(
    tiny_artifact: Path, tmp_path: Path, name: str, content: dict[str, Any]
) -> None:
    artifact = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    (artifact / "evidence" / name).write_text(json.dumps(content))
    result = report(artifact)

    assert (result.exit_code, result.stdout) == (1, "")
    assert f"evidence/{name}: is not what a build writes" in result.stderr


def test_an_artifact_of_an_older_build(artifact: Path) -> None:
    manifest = Artifact.open(artifact).manifest
    told = json.loads(json.dumps(manifest.conformance))
    for name in ("kl_by_position", "top1_by_position"):
        del told["plain"]["measures"][name]
    changed = dataclasses.replace(manifest, conformance=told)
    (artifact / "manifest.json").write_text(changed.to_json(), "utf-8")
    shutil.rmtree(artifact / "evidence")
    found = page(artifact)
    assert "plot-kl" not in found.ids()
    assert "The build kept no record of its passes" in found.text


def test_names_are_text(artifact: Path) -> None:
    manifest = Artifact.open(artifact).manifest
    changed = dataclasses.replace(manifest, name="<script>alert(1)</script>")
    (artifact / "manifest.json").write_text(changed.to_json(), "utf-8")
    found = page(artifact)
    assert "script" not in {tag for tag, _ in found.tags}
    assert "<script>alert(1)</script>" in found.text


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"artifact": "a"}'])
def test_what_is_no_measurement_is_refused(artifact: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "bench.json").write_text(text)
    result = report(artifact, "--bench", tmp_path / "bench.json")
    assert result.exit_code == 1
    assert str(tmp_path / "bench.json") in result.stderr


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(
    "points",
    [
        [(0.0, 1.0)],
        [(1.0, 0.0), (2.0, 0.0)],
        [(1.0, 1e-12), (2.0, 1.0), (3.0, float("nan"))],
        [(1.0, -1.0), (2.0, 5.0)],
    ],
)
def test_every_point_of_a_plot_lies_inside(points: list[tuple[float, float]], log: bool) -> None:
    drawn = lines("a", Axes("x", "y", log=log), {"series": points})
    found: Any = re.search(r'points="([^"]*)"', drawn)
    if found is None:
        assert log
        assert not any(y > 0 for _, y in points)
        return
    for pair in found[1].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 640
        assert 0 <= y <= 240


def test_a_plot_of_nothing() -> None:
    assert lines("a", Axes("x", "y"), {}) == bars("a", {}) == ""
    assert "<rect" in bars("a", {"zero": 0.0})


def test_a_long_name_keeps_its_end() -> None:
    drawn = bars("a", {"model.layers.0." + "x" * 60 + ".weight (4 bits)": 0.1})
    assert re.search(r">\.\.\.x+\.weight \(4 bits\)<", drawn)
