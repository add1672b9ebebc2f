"""The build, top to bottom: a recipe goes in, a published artifact comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from enginewright.builder.assembly import Made
from enginewright.builder.cache import DEFAULT_LIMIT, collect
from enginewright.builder.conformance import without_like_kernels
from enginewright.builder.evidence import write_evidence
from enginewright.builder.export import attach_weights
from enginewright.builder.history import remember_build
from enginewright.builder.lock import Lock, lock_in, read_lock
from enginewright.builder.memory import passing_over_older_objects
from enginewright.builder.plan import plan
from enginewright.builder.publish import EVIDENCE, staging, write_json
from enginewright.builder.recipe import Recipe
from enginewright.builder.run import Progress, Run
from enginewright.builder.stages import Stages
from enginewright.builder.subject import Subject, open_subject
from enginewright.builder.targets import Target
from enginewright.builder.tuning import TuneFor, candidates, tune
from enginewright.builder.variants import join_variants
from enginewright.runtime.artifact.local_artifacts import BuiltFrom, remember_artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.artifact.publishing import publish
from enginewright.runtime.conformance import Reference
from enginewright.runtime.errors import ConformanceError, RecipeError

_COMPARED_TOKENS = 64


@dataclass(frozen=True)
class How:
    """How to build, beyond what the recipe says; see ``build``."""

    debug: Path | None = None
    tune_for: TuneFor | None = None
    locked: Path | None = None
    lock: Lock | None = None
    """What ``locked`` says."""


def build(
    recipe: Recipe,
    output: Path,
    *,
    progress: Progress,
    debug_precision: bool = False,
    tune_for: TuneFor | None = None,
    locked: Path | None = None,
    explain: Callable[[str], None] | None = None,
    cache_limit: int = DEFAULT_LIMIT,
) -> Path:
    """Build the artifact ``output / recipe.name`` and return its path.

    ``debug_precision``: where conformance fails, compare layer by layer, and say where it starts.
    ``tune_for``: what is the fastest on this machine is preferred, not the target's first.
    ``locked``: a lock.json, an artifact that has one, or a folder of either, as ``lock_in`` finds
    it; what differs from it is refused by name.
    ``explain`` hears why each stage ran or was taken from the cache, which may hold
    ``cache_limit`` bytes in the end.
    Raises BuildError (and below); whatever fails, an artifact of an earlier build stays as it was.
    """
    place = output / recipe.name
    debug = output / f"{recipe.name}.debug" if debug_precision else None
    where = None if locked is None else lock_in(locked, recipe.name)
    how = How(debug, tune_for, where, None if where is None else read_lock(where))
    with passing_over_older_objects(), staging(output, recipe.name, progress) as folder:
        run = Run(progress, explain)
        made = (_make_set if recipe.variants else make)(recipe, folder, run, how, place)
        write_evidence(folder)
        with run.stage("publish"):
            publish(folder, place)
    source = made.subject.source
    remember_artifact(place, BuiltFrom.of(source.origin.location), source.digest)
    collect(cache_limit)
    return place


def make(recipe: Recipe, folder: Path, run: Run, how: How, place: Path) -> Made:
    """Everything of an artifact but its appearance, which is at ``place``, into the folder."""
    with run.stage("source"):
        subject, lock = _opened(recipe, how), how.lock
        source, target = subject.source, subject.target
        source.write_tokenizer(folder)
    with run.stage("plan"):
        estimate = plan(subject)
        estimate.check(place.parent)
        write_json(folder / EVIDENCE / "plan.json", estimate.as_data())
    with run.stage("operators"):
        target.prepare()
    stages = Stages(run.cache, subject)
    with run.stage("export"):
        exported = stages.exported()
        model = attach_weights(exported, source.weight)
    with run.stage("reference"):
        reference = stages.reference(folder)
    with run.stage("compile"):
        request = stages.request(exported.caches, reference, folder, run.progress)
        engines = stages.engines(model, request)
    made = Made(subject, engines)
    if lock is not None:
        made = Made(subject, lock.ordered(engines), tuning=lock.tuning)
    with run.stage("conformance"):
        made.write(folder)
        interpreted = model if target.interpreted else None
        with _compared(target, model, reference, how.debug):
            found = stages.conformance(reference, folder, made.engines, interpreted)
        made = replace(made, conformance=found)
    if how.tune_for is not None and lock is None:
        with run.stage("tuning"):
            made = _tuned(made, stages, reference, folder, run.progress, how.tune_for)
    if lock is not None:
        lock.check_after(made.lock(), str(how.locked))
    kept = without_like_kernels(made.conformance, made.engines)
    made = replace(made, conformance=kept)
    made.write(folder)
    remember_build(estimate.subject_size, run)
    write_json(folder / EVIDENCE / "build.json", run.happened())
    return made


def _tuned(
    made: Made,
    stages: Stages,
    reference: Reference,
    folder: Path,
    progress: Progress,
    tune_for: TuneFor,
) -> Made:
    """With the plans in order, and each with the kernels, that are the fastest here."""

    def check(entry: EngineEntry) -> Mapping[str, Any]:
        return stages.conformance(reference, folder, (entry,), None)[entry.plan]

    timed = tuple(candidates(made.engines, made.conformance, check, progress))
    made.write(folder)
    found = tune(folder, timed, progress, tune_for)
    return replace(
        made,
        engines=tuple(each.entry for each in found.candidates),
        conformance={each.entry.plan: each.conformance for each in found.candidates},
        tuning=found.entry,
    )


def _make_set(recipe: Recipe, folder: Path, run: Run, how: How, place: Path) -> Made:
    """The variants one after the other, sharing stages through the cache, then as one."""
    if how.tune_for is not None:
        raise RecipeError(
            f"{recipe.name}: --tune orders the plans of one engine, a set has several: leave it out"
        )
    parts = {}
    for name, variant in recipe.each_variant().items():
        part = folder / f".{name}"
        part.mkdir()
        run.progress(f"variant {name}")
        parts[name] = make(variant, part, run.another(), replace(how, lock=None), place)
    made = join_variants(recipe, parts, folder)
    if how.lock is not None:
        how.lock.check_before(made.lock(), str(how.locked))
        how.lock.check_after(made.lock(), str(how.locked))
    made.write(folder)
    return made


def _opened(recipe: Recipe, how: How) -> Subject:
    """What is built; whatever can be refused now is."""
    subject = open_subject(recipe)
    subject.target.check(recipe.attention or "native")
    _check(recipe, subject.target, how)
    if how.lock is not None:
        how.lock.check_before(Made(subject).lock(), str(how.locked))
    return subject


def _check(recipe: Recipe, target: Target, how: How) -> None:
    if how.tune_for is not None and target.interpreted:
        raise RecipeError(
            f"--tune times plans by running them, which target {recipe.target!r} leaves to "
            f"the machine with its device: leave --tune out; legal with target 'cpu'"
        )
    if how.debug is not None:
        target.check_debug_precision(recipe.precision, recipe.attention or "native")


@contextmanager
def _compared(
    target: Target, model: ir.Model, reference: Reference, place: Path | None
) -> Iterator[None]:
    """Add to a failed conformance where the layers differ; into the folder ``place``, if any."""
    try:
        yield
    except ConformanceError as error:
        if place is None:
            raise
        tokens = reference.text_ids[0, :_COMPARED_TOKENS].tolist()
        said = target.compare_layers(model, tokens, place)
        raise ConformanceError(f"{error}\nlayer by layer: {said}") from error
