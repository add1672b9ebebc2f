"""Plots as inline SVG: lines over positions, bars beside each other. No scripts, no fonts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 36, 40
_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")
_ROW = 22
_LABELS = 250
_BARS = 6
_LONGEST = 38

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axes:
    """What the axes are called; ``log``: whether the vertical one is logarithmic."""

    x: str
    y: str
    log: bool = False


def lines(title: str, axes: Axes, series: Mapping[str, Points]) -> str:
    """One line for each series; points without a place on a logarithmic axis are left out."""
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not axes.log)]
        for name, points in series.items()
    }
    every = [point for points in kept.values() for point in points]
    if not every:
        return ""
    root = _canvas(title, _HEIGHT + _ROW * len(kept))
    low, high = _range([y for _, y in every], log=axes.log)
    right = max(x for x, _ in every) or 1.0
    for value in _ticks(low, high, log=axes.log):
        y = _place(value, low, high, log=axes.log)
        _line(root, (_LEFT, y), (_WIDTH - _RIGHT, y), "#e2e8f0")
        _text(root, _LEFT - 6, y + 4, f"{value:.3g}", anchor="end")
    _text(root, (_LEFT + _WIDTH) / 2, _HEIGHT - 6, axes.x, anchor="middle")
    _text(root, 8, 14, axes.y)
    for x in (0.0, right / 2, right):
        _text(root, _across(x, right), _HEIGHT - _BOTTOM + 18, f"{x:.4g}", anchor="middle")
    for at, (name, points) in enumerate(kept.items()):
        colour = _COLOURS[at % len(_COLOURS)]
        placed = [(_across(x, right), _place(y, low, high, log=axes.log)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        ET.SubElement(
            root,
            "polyline",
            {"points": path, "fill": "none", "stroke": colour, "stroke-width": "2"},
        )
        for x, y in placed if len(placed) < 20 else []:
            circle = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3", "fill": colour}
            ET.SubElement(root, "circle", circle)
        _key(root, at, name, colour)
    return ET.tostring(root, "unicode")


def bars(title: str, values: Mapping[str, float], unit: str = "", most: float | None = None) -> str:
    """One bar for each value, from 0 to the largest or ``most``."""
    if not values:
        return ""
    root = _canvas(title, _BARS + _ROW * len(values) + 8)
    largest = most or max(values.values()) or 1.0
    space = _WIDTH - _LABELS - 90
    for at, (name, value) in enumerate(values.items()):
        y = _BARS + _ROW * at
        width = max(value, 0.0) / largest * space
        _text(root, _LABELS - 8, y + 14, _cut(name), anchor="end")
        box = {"x": str(_LABELS), "y": str(y + 3), "width": f"{width:.1f}", "height": "14"}
        ET.SubElement(root, "rect", {**box, "fill": _COLOURS[0]})
        _text(root, _LABELS + width + 6, y + 14, f"{value:.4g} {unit}".strip())
    return ET.tostring(root, "unicode")


def _cut(name: str) -> str:
    """The end of a long name, which tells it from others."""
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"


def _canvas(title: str, height: float) -> ET.Element:
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {height:.0f}",
            "role": "img",
            "font-size": "12",
        },
    )
    ET.SubElement(root, "title").text = title
    return root


def _key(root: ET.Element, at: int, name: str, colour: str) -> None:
    y = _HEIGHT + _ROW * at
    box = {"x": str(_LEFT), "y": str(y), "width": "12", "height": "12", "fill": colour}
    ET.SubElement(root, "rect", box)
    _text(root, _LEFT + 20, y + 11, name)


def _range(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return 10 ** math.floor(math.log10(low)), 10 ** max(
            math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1
        )
    return min(low, 0.0), high if high > 0 else 1.0


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    if log:
        first, last = round(math.log10(low)), round(math.log10(high))
        step = max(1, (last - first) // 5)
        return [10.0**power for power in range(first, last + 1, step)]
    return [low + (high - low) * part / 4 for part in range(5)]


def _place(value: float, low: float, high: float, *, log: bool) -> float:
    if log:
        value, low, high = math.log10(value), math.log10(low), math.log10(high)
    share = (value - low) / (high - low) if high > low else 0.5
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _across(x: float, right: float) -> float:
    return _LEFT + x / right * (_WIDTH - _LEFT - _RIGHT)


def _line(root: ET.Element, start: tuple[float, float], end: tuple[float, float], c: str) -> None:
    ends = {"x1": f"{start[0]:.1f}", "y1": f"{start[1]:.1f}"}
    ends |= {"x2": f"{end[0]:.1f}", "y2": f"{end[1]:.1f}"}
    ET.SubElement(root, "line", {**ends, "stroke": c})


def _text(root: ET.Element, x: float, y: float, text: str, anchor: str = "start") -> None:
    where = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": "#2d3748"}
    ET.SubElement(root, "text", where).text = text
