"""A table of cells as JUnit XML, which CI systems show as tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from enginewright.builder.cells import Outcome


def write_junit(outcomes: Sequence[Outcome], path: Path) -> None:
    """One test suite, one case a cell."""
    count = {status: sum(each.status == status for each in outcomes) for status in _STATUSES}
    suite = ElementTree.Element(
        "testsuite",
        name="enginewright build",
        tests=str(len(outcomes)),
        failures=str(count["failed"]),
        skipped=str(count["skipped"]),
        errors="0",
        time=f"{sum(each.seconds for each in outcomes):.3f}",
    )
    for each in outcomes:
        _case(suite, each)
    ElementTree.indent(suite)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


_STATUSES = ("built", "failed", "skipped")
_UNPRINTABLE = dict.fromkeys((*range(9), 11, 12, *range(14, 32)), "\ufffd")
"""Characters that XML does not have."""


def _case(suite: ElementTree.Element, outcome: Outcome) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=f"{outcome.target}.{outcome.precision}",
        name=outcome.name,
        time=f"{outcome.seconds:.3f}",
    )
    message = (outcome.message or "").translate(_UNPRINTABLE)
    if outcome.status == "failed":
        first = message.partition("\n")[0]
        ElementTree.SubElement(case, "failure", message=first).text = message
    elif outcome.status == "skipped":
        ElementTree.SubElement(case, "skipped", message=message)
    elif outcome.device is not None:
        said = (
            f"built, device {outcome.device}: its graph passed conformance, its engine did not run"
        )
        ElementTree.SubElement(case, "system-out").text = said
