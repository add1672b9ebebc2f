"""Which of an artifact's engines runs here: the first whose code may and can.

Engines stand in the manifest's order, which the build may have measured. On another processor than
that, and one for which our operators have no kernels of their own, a plan without them goes first:
in plain C++ they take much longer over prompts than ONNX Runtime's, and less over single tokens.
The kernels that a plan is held to were measured for that processor alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry, TuningEntry
from enginewright.runtime.artifact.native_code import objection
from enginewright.runtime.backends import open_engine
from enginewright.runtime.engine import Engine
from enginewright.runtime.errors import (
    DeviceError,
    MissingDependencyError,
    NativeCodeError,
    TargetError,
)
from enginewright.runtime.processor import CPU_KERNELS, processor_name, why_plain_kernels

logger = logging.getLogger(__name__)


def open_plan(
    artifact: Artifact,
    *,
    target: str | None = None,
    plan: str | None = None,
    allow_native_code: bool | None = None,
    threads: int | None = None,
    in_turns: bool = False,
    limited: Callable[[EngineEntry], EngineEntry] = lambda entry: entry,
) -> tuple[Engine, EngineEntry]:
    """The first plan that runs here, loaded, and its entry; what was passed over is logged.

    Without a ``target`` those of all targets are tried. ``in_turns``: see ``open_engine``. Raises
    TargetError with the reasons if none runs; the first DeviceError or MissingDependencyError if
    each was refused by one of these.
    """
    asked = artifact.plans(target, plan)
    opened = partial(open_engine, threads=threads, in_turns=in_turns)
    reasons: list[str] = []
    refusals: list[DeviceError | MissingDependencyError] = []
    ordered = in_order(asked, artifact.manifest.tuning)
    for place, each in enumerate(ordered):
        entry = limited(each)
        reason = objection(artifact, entry, allow_native_code)
        if reason is None:
            try:
                engine = _open(artifact, entry, opened)
            except NativeCodeError as error:
                reason = str(error)
            except (DeviceError, MissingDependencyError) as error:
                reason = str(error)
                refusals.append(error)
            else:
                before = asked[: asked.index(each)]
                put_back = (other for other in ordered[place + 1 :] if other in before)
                reasons += (_behind(artifact, other, allow_native_code) for other in put_back)
                for passed in reasons:
                    logger.warning("%s; plan %s runs instead", passed, entry.plan)
                return engine, entry
        reasons.append(f"plan {entry.plan}: {reason}")
    if refusals and len(refusals) == len(reasons):
        raise refusals[0]
    raise TargetError(f"{artifact.path}: no plan of it runs here. {'; '.join(reasons)}")


def open_entry(artifact: Artifact, entry: EngineEntry) -> Engine:
    """An engine that the manifest need not have. Raises NativeCodeError if it may not run here."""
    reason = objection(artifact, entry, None)
    if reason is not None:
        raise NativeCodeError(f"plan {entry.plan}: {reason}")
    return open_engine(artifact, entry)


def in_order(
    entries: Sequence[EngineEntry], tuning: TuningEntry | None, root: Path = Path("/")
) -> list[EngineEntry]:
    """As this machine should prefer them; ``root`` is where /proc lies."""
    return preferred(entries, tuning, processor_name(root), vectors=why_plain_kernels(root) is None)


def preferred(
    entries: Sequence[EngineEntry], tuning: TuningEntry | None, processor: str, *, vectors: bool
) -> list[EngineEntry]:
    """As a machine with that processor should prefer them.

    ``vectors``: our operators have kernels of their own for it.
    """
    if vectors or _measured_on(tuning, processor):
        return list(entries)
    return sorted(entries, key=lambda entry: entry.library is not None)


def _behind(artifact: Artifact, entry: EngineEntry, allow_native_code: bool | None) -> str:
    """Why a plan that the artifact has first was not tried."""
    reason = objection(artifact, entry, allow_native_code) or (
        f"its operators would run in plain C++ ({why_plain_kernels()}), which makes prompts "
        f"slower; plan={entry.plan!r} runs it all the same"
    )
    return f"plan {entry.plan}: {reason}"


def _open(
    artifact: Artifact, entry: EngineEntry, opened: Callable[[Artifact, EngineEntry], Engine]
) -> Engine:
    """The engine, held to the kernels that the build found the fastest if it measured here."""
    tuning, wanted = artifact.manifest.tuning, entry.cpu_kernels
    if tuning is None or wanted is None:
        return opened(artifact, entry)
    if not _measured_on(tuning, processor_name()):
        logger.info(
            "plan %s: its kernels (%s) were chosen on another processor, %s; the best that this "
            "one has run instead",
            *(entry.plan, wanted, tuning.processor),
        )
        return opened(artifact, replace(entry, cpu_kernels=None))
    engine = opened(artifact, entry)
    found = engine.describe().cpu_kernels
    if found is not None and found != wanted and not os.environ.get(CPU_KERNELS):
        logger.warning(
            "plan %s: its kernels (%s) were chosen on a processor of this name, but this one lacks "
            "them; %s run instead",
            *(entry.plan, wanted, found),
        )
    return engine


def _measured_on(tuning: TuningEntry | None, processor: str) -> bool:
    return tuning is not None and tuning.processor == processor
