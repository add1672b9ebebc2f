"""Several engines in one artifact: they share what is the same, and nothing is stored twice.

    engine/<variant>/...    each variant's files; equal files are one file with several names
    tokenizer.json ...      once, and so is the reference
    evidence/<variant>/     each variant's

Plans are called <variant>.<plan>; their order is that of the recipe.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from enginewright.builder.assembly import Made
from enginewright.builder.publish import EVIDENCE
from enginewright.builder.recipe import Recipe
from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.manifest import EngineEntry

_ENGINE = "engine"
_OWN = (_ENGINE, EVIDENCE, "lock.json", "manifest.json")


def join_variants(recipe: Recipe, parts: Mapping[str, Made], folder: Path) -> Made:
    """Make one artifact of those that lie in ``folder / .<variant>``, which go away."""
    for name in parts:
        part = folder / f".{name}"
        (part / _ENGINE).rename(_made(folder / _ENGINE) / name)
        (part / EVIDENCE).rename(_made(folder / EVIDENCE) / name)
        for path in part.iterdir():
            if path.name not in _OWN and not (folder / path.name).exists():
                path.rename(folder / path.name)
        shutil.rmtree(part)
    _share(folder / _ENGINE)
    first = next(iter(parts.values()))
    found = {
        f"{name}.{plan}": report
        for name, made in parts.items()
        for plan, report in made.conformance.items()
    }
    return Made(
        subject=replace(first.subject, recipe=recipe),
        engines=tuple(_named(n, entry) for n, made in parts.items() for entry in made.engines),
        conformance=found,
        joined_tools={tool: v for made in parts.values() for tool, v in made.tools.items()},
    )


def _share(folder: Path) -> None:
    """Make one file of equal ones."""
    known: dict[tuple[int, str], Path] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        first = known.setdefault((path.stat().st_size, sha256_file(path)), path)
        if first is not path and not first.samefile(path):
            path.unlink()
            os.link(first, path)


def _named(variant: str, entry: EngineEntry) -> EngineEntry:
    """The entry with the variant in its plan's name and in its files' paths."""

    def moved(path: str) -> str:
        return f"{_ENGINE}/{variant}/{path.removeprefix(f'{_ENGINE}/')}"

    nvidia = entry.nvidia
    if nvidia is not None:
        plugins = tuple(replace(each, kernels=moved(each.kernels)) for each in nvidia.plugins)
        nvidia = replace(nvidia, plugins=plugins)
    return replace(
        entry,
        plan=f"{variant}.{entry.plan}",
        model=moved(entry.model),
        files=tuple(map(moved, entry.files)),
        library=None if entry.library is None else moved(entry.library),
        nvidia=nvidia,
    )


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
