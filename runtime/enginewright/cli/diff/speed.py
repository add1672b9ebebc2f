"""The speed of two artifacts: both are run here, in turns, the same prompts for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from enginewright.cli.bench.children import OUR_WORKER
from enginewright.cli.bench.comparison import Entrant
from enginewright.cli.bench.entrants import Runner
from enginewright.cli.bench.stats import Figure
from enginewright.cli.bench.turns import Samples, remark, take_turns
from enginewright.cli.bench.workload import most_rows, ordinary_ids, weight_bytes
from enginewright.cli.bench.works import WORKS, Work
from enginewright.cli.diff.measures import Kind, Measure, pair_name
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.backends import load_backend
from enginewright.runtime.errors import EnginewrightError

USUAL = ("decode-1", "decode-8", "prefill-512", "start")


@dataclass(frozen=True)
class Rules:
    """How the samples are taken: which works, how many of each, with how many threads, and
    whether native code may run (None: what this machine compiled or the package brings)."""

    works: Sequence[str]
    runs: int
    threads: int
    allow_native_code: bool | None = None


def speeds(a: Artifact, b: Artifact, rules: Rules) -> list[Measure]:
    """A measure of each work; without values, but with the reason, where one cannot be run."""
    return [_measure(WORKS[name], a, b, rules) for name in rules.works]


def _measure(work: Work, a: Artifact, b: Artifact, rules: Rules) -> Measure:
    kind = Kind(work.unit, more_is_better=work.more_is_better)
    for each in (a, b):
        if not work.fits(each.engine().limits, most_rows(each.engine())):
            reason = f"{each.path} was built for less"
            return Measure(work.name, kind, None, None, reason=reason)
    try:
        taken = _taken(work, a, b, rules)
    except EnginewrightError as error:
        return Measure(work.name, kind, None, None, reason=str(error).splitlines()[-1].strip())
    figures = [_figure(work, each, taken[label]) for each, label in ((a, "A"), (b, "B"))]
    notes = (remark(label, samples) for label, samples in taken.items())
    return Measure(
        work.name,
        kind,
        figures[0].median,
        figures[1].median,
        plan=pair_name(*(_plan(samples) for samples in taken.values())),
        reason="; ".join(note for note in notes if note),
        shown=(figures[0].cell(), figures[1].cell()),
    )


def _taken(work: Work, a: Artifact, b: Artifact, rules: Rules) -> Mapping[str, Samples]:
    ids = set(ordinary_ids(a.manifest, a.engine())) & set(ordinary_ids(b.manifest, b.engine()))
    request = work.request(sorted(ids), rules.threads)
    request["options"] = {"allow_native_code": rules.allow_native_code}
    takes = {}
    for label, artifact in (("A", a), ("B", b)):
        load_backend(artifact.engine().target)
        entrant = Entrant(label, True, weight_bytes(artifact))
        takes[label] = partial(Runner(entrant, OUR_WORKER, str(artifact.path)).take, request)
    return take_turns(takes, rules.runs, work.name)


def _plan(samples: Samples) -> str:
    """The plan that ran, which is another one than the preferred where that may not run here."""
    return str(samples.used[0].said["plan"])


def _figure(work: Work, artifact: Artifact, samples: Samples) -> Figure:
    weights = weight_bytes(artifact)
    return Figure(work.name, work.unit, tuple(work.figure(one, weights) for one in samples.used))
