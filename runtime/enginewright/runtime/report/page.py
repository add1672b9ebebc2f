"""The report as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from enginewright.runtime.report.content import Asked, content

REPORT_FILE = "evidence/report.html"
_TEMPLATE = "report.html.jinja"
_UNITS = ("B", "kB", "MB", "GB", "TB")


def render(asked: Asked, place: Path) -> str:
    """The page's text, with links as seen from ``place``."""
    # Imported here: Jinja takes a while to import.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    source = resources.files(__package__).joinpath(_TEMPLATE).read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["size"] = _size
    environment.filters["svg"] = Markup
    return environment.from_string(source).render(content(asked, place))


def _size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
