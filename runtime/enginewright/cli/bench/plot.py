"""A comparison as a picture: one bar a peer and work, as long as ours is times better, in SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from enginewright.cli.bench.comparison import Comparison, Result

_LABELS, _WIDTH, _ROW, _MARGIN = 360, 900, 18, 24
_LEAST, _MOST = 0.25, 16.0
"""Ratios at the ends of the axis; what lies beyond is drawn as long as the axis."""
_COLOURS = {"near-lossless": "#2b6cb0", "lossy": "#cbd5e0", "": "#718096"}


def draw(comparison: Comparison) -> str:
    """An SVG document. Bars to the right of the line at 1: ours is better."""
    results = [result for result in comparison.results if result.leads()]
    lines = list(_lines(results))
    height = _MARGIN * 3 + _ROW * len(lines)
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {height}",
            "font-family": "sans-serif",
            "font-size": "12",
        },
    )
    ET.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "white"})
    _text(root, 8, _MARGIN, f"{comparison.name}: how many times better ours is", weight="bold")
    _axis(root, height)
    for at, (text, ratio, grade) in enumerate(lines):
        y = _MARGIN * 2 + _ROW * at
        if ratio is None:
            _text(root, 8, y + 13, text, weight="bold")
        else:
            _text(root, 24, y + 13, text)
            _bar(root, y, ratio, _COLOURS[grade])
    ET.indent(root)
    return ET.tostring(root, "unicode") + "\n"


def _lines(results: Sequence[Result]) -> Iterator[tuple[str, float | None, str]]:
    """The text, the ratio and the class of each line; a heading has no ratio."""
    for result in results:
        yield result.work.title, None, ""
        for label, ratio in result.leads().items():
            if math.isfinite(ratio):
                yield label, ratio, result.entrants[label].grade


def place(ratio: float) -> float:
    """Where a ratio lies from left to right: doubling is always the same step."""
    within = min(max(ratio, _LEAST), _MOST)
    share = math.log(within / _LEAST) / math.log(_MOST / _LEAST)
    return _LABELS + share * (_WIDTH - _LABELS - 60)


def _axis(root: ET.Element, height: int) -> None:
    ratio = _LEAST
    while ratio <= _MOST:
        x = f"{place(ratio):.1f}"
        colour = "#1a202c" if ratio == 1 else "#e2e8f0"
        ends = {"x1": x, "x2": x, "y1": str(_MARGIN * 2), "y2": str(height - _MARGIN)}
        ET.SubElement(root, "line", {**ends, "stroke": colour})
        _text(root, place(ratio) - 8, height - 8, f"{ratio:g}x")
        ratio *= 2


def _bar(root: ET.Element, y: float, ratio: float, colour: str) -> None:
    left, right = sorted((place(1), place(ratio)))
    box = {"x": f"{left:.1f}", "width": f"{right - left:.1f}", "y": f"{y + 3}", "height": "12"}
    ET.SubElement(root, "rect", {**box, "fill": colour})
    _text(root, right + 4, y + 13, f"{ratio:.2f}x")


def _text(root: ET.Element, x: float, y: float, text: str, weight: str = "normal") -> None:
    where = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font-weight": weight}
    ET.SubElement(root, "text", where).text = text
