"""The report in a real browser: everything is laid out, nothing overflows, nothing is fetched."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginewright.cli.main import main

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium (make system-deps)")

PROBE = """
<script>
window.addEventListener("load", () => {
  document.querySelectorAll("details").forEach(each => { each.open = true; });
  const box = each => { const b = each.getBoundingClientRect(); return [b.width, b.height]; };
  const told = {
    figures: Object.fromEntries([...document.querySelectorAll("figure")].map(
      each => [each.id, box(each.querySelector("svg"))])),
    points: document.querySelectorAll("polyline").length,
    sections: [...document.querySelectorAll("section")].map(box),
    fetched: performance.getEntriesByType("resource").map(each => each.name),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    mode: document.compatMode,
  };
  const place = document.createElement("pre");
  place.id = "told";
  place.textContent = JSON.stringify(told);
  document.body.append(place);
});
</script>
"""


def browse(page: Path, width: int, *arguments: str) -> str:
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={page.parent / 'profile'}",
            f"--window-size={width},1200",
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout


@pytest.mark.parametrize("width", [1200, 700])
def test_the_page_is_laid_out(tiny_artifact: Path, tmp_path: Path, width: int) -> None:
    latency: dict[str, Any] = {
        "artifact": "tiny",
        "threads": 1,
        "machine": {"processor": "p"},
        "figures": {
            f"between tokens at {n}, p50": {"unit": "ms", "median": n, "min": 1, "max": 9}
            for n in (64, 512)
        },
    }
    (tmp_path / "latency.json").write_text(json.dumps(latency))
    page = tmp_path / "report.html"
    arguments = ["report", str(tiny_artifact), "-o", str(page)]
    made = CliRunner().invoke(main, [*arguments, "--bench", str(tmp_path / "latency.json")])
    assert made.exit_code == 0, made.output
    page.write_text(page.read_text("utf-8").replace("</body>", f"{PROBE}</body>"), "utf-8")

    found = re.search(r'<pre id="told">(.*?)</pre>', browse(page, width, "--dump-dom"), re.DOTALL)
    assert found is not None
    told = json.loads(unescape(found[1]))
    assert told["figures"].keys() == {"plot-kl", "plot-top1", "plot-agreement", "plot-decode"}
    one_bar = told["figures"].pop("plot-agreement")
    assert min(one_bar) > 25
    for size in [*told["figures"].values(), *told["sections"]]:
        assert min(size) > 40
    assert told["points"] == 3
    assert told["fetched"] == []
    assert told["overflow"] <= 0
    assert told["mode"] == "CSS1Compat"


def test_it_can_be_seen(tiny_artifact: Path, tmp_path: Path) -> None:
    page = shutil.copy(tiny_artifact / "evidence" / "report.html", tmp_path / "report.html")
    picture = tmp_path / "report.png"
    browse(Path(page), 1000, f"--screenshot={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000, "a blank page is smaller"
