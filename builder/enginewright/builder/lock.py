"""lock.json: everything that the artifact's bytes depend on, and what a locked build compares.

| field          | what it pins                                                               |
|----------------|----------------------------------------------------------------------------|
| recipe         | the recipe, thresholds of its precision included                           |
| source_digest  | every file of the source                                                   |
| tools          | versions of Python, the distributions and the compiler; digests of the     |
|                | builder's and the plugins' own code                                        |
| machine        | platform and vector instructions, on which the last digits of floats hang  |
| engines        | in the order of preference: plan, fingerprint, whether bytes repeat, and   |
|                | the kernels that --tune chose                                              |
| tuning         | the times behind order and kernels, where --tune measured them             |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from enginewright.builder.publish import write_json
from enginewright.builder.recipe_errors import describe
from enginewright.builder.stage_inputs import flat
from enginewright.runtime.artifact.manifest import EngineEntry, TuningEntry
from enginewright.runtime.artifact.native_code import this_platform
from enginewright.runtime.errors import BuildError
from enginewright.runtime.processor import InstructionSet, has_tile_kernels

LOCK_NAME = "lock.json"
_SHOWN = 48


class EngineRow(BaseModel):
    """What a lock says of an engine."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)

    target: str
    plan: str
    precision: str
    fingerprint: str
    reproducible: bool
    cpu_kernels: InstructionSet | None = None


class Lock(BaseModel):
    """See the module's table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Mapping[str, Any]
    source_digest: str
    tools: Mapping[str, str]
    machine: str
    engines: tuple[EngineRow, ...] = ()
    tuning: TuningEntry | None = None

    def write(self, folder: Path) -> None:
        write_json(folder / LOCK_NAME, self.model_dump())

    def check_before(self, now: Lock, where: str) -> None:
        """Raise BuildError, with each name, for what is not as it was locked.

        Tools that ``now`` does not name are left to ``check_after``.
        """
        tools = {name: self.tools[name] for name in now.tools if name in self.tools}
        known = self.model_copy(update={"tools": tools})
        known._compare(now, ("recipe", "source_digest", "tools", "machine"), where)

    def check_after(self, now: Lock, where: str) -> None:
        """The same of what compiled the engines, and of these themselves."""
        self._compare(now, ("tools", "engines"), where)

    def ordered(self, engines: Sequence[EngineEntry]) -> tuple[EngineEntry, ...]:
        """The engines in the order, and with the kernels, that were locked; those that it does not
        know come last."""
        known = {entry.plan: at for at, entry in enumerate(self.engines)}
        kernels = {entry.plan: entry.cpu_kernels for entry in self.engines}
        found = sorted(engines, key=lambda entry: known.get(entry.plan, len(known)))
        return tuple(replace(entry, cpu_kernels=kernels.get(entry.plan)) for entry in found)

    def _compare(self, now: Lock, names: Sequence[str], where: str) -> None:
        changed = [line for name in names for line in _changes(self, now, name)]
        if changed:
            listed = "\n".join(f"  {line}" for line in changed)
            raise BuildError(
                f"the build is not what {where} pins, so nothing is published:\n{listed}\n"
                f"bring these back to what is locked, or build without --locked for a new lock"
            )


def machine() -> str:
    """Platform and vector instructions: what the last digits of floating point depend on."""
    tiles = " AMX" if has_tile_kernels() else ""
    return f"{this_platform()} {torch.backends.cpu.get_cpu_capability()}{tiles}"


def lock_in(folder: Path, name: str) -> Path:
    """Where a folder has the lock of what is called so; a lock, or an artifact, is its own.

    Raises BuildError.
    """
    if not folder.is_dir() or (folder / LOCK_NAME).is_file():
        return folder
    places = (folder / f"{name}.lock.json", folder / name / LOCK_NAME)
    for place in places:
        if place.is_file():
            return place
    raise BuildError(
        f"{folder} has no lock of {name}: {places[0].name} or {name}/{LOCK_NAME} is wanted there; "
        f"build once without --locked for one"
    )


def read_lock(place: Path) -> Lock:
    """The lock in a file, or of the artifact in a folder. Raises BuildError."""
    path = place / LOCK_NAME if place.is_dir() else place
    try:
        return Lock.model_validate(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise BuildError(
            f"{path}: no lock can be read here ({error.strerror}); give the lock.json of an "
            f"artifact, or the artifact's folder"
        ) from error
    except ValueError as error:
        wrong = describe(error, Lock) if isinstance(error, ValidationError) else f"no JSON: {error}"
        raise BuildError(
            f"{path}: not a lock of this version of Enginewright: {wrong}\n"
            f"build once without --locked for a new one"
        ) from error


def _changes(old: Lock, new: Lock, name: str) -> Iterator[str]:
    before, after = (flat(name, lock.model_dump()[name]) for lock in (old, new))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) or (key in before) != (key in after):
            yield f"{key}: {_shown(before, key)} is locked, {_shown(after, key)} is here"


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = str(values[key]) if key in values else "nothing"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
