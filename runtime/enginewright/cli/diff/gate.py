"""The gate: a file that says by how much B may be worse than A, and what must stay as it is.

| key        | value                                                                           |
|------------|---------------------------------------------------------------------------------|
| max_worse  | measure: the most that B may be worse, as 0.5% or 0.005                         |
| no_lower   | names of limits: max_context, max_batch                                         |
| unchanged  | names of sections: source, recipe, limits, end tokens, template...              |

A share of A's value for perplexity, sizes and speeds; the difference for agreements and KL. What
could not be measured is a breach: a gate that was not looked at has not been passed. So is a plan
that only A has, for a gate that bounds anything of plans.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginewright.cli.bench.works import WORKS
from enginewright.cli.diff.changes import Change
from enginewright.cli.diff.measures import COSTS, QUALITY, Measure, Plans
from enginewright.runtime.errors import SettingsError

LIMITS = ("max_context", "max_batch")
SECTIONS = (
    "source",
    "recipe",
    "limits",
    "engines",
    "end tokens",
    "sampling defaults",
    "tokenizer and template",
    "engine files",
    "tools",
    "template",
)
"""``template``: the golden conversations; "tokenizer and template": the bytes of the files."""
_KEYS = ("max_worse", "no_lower", "unchanged")
MEASURES = (*QUALITY, *COSTS, *WORKS)


@dataclass(frozen=True)
class Gate:
    """See the module's table."""

    max_worse: Mapping[str, float] = field(default_factory=dict)
    no_lower: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()

    @property
    def speeds(self) -> list[str]:
        """The works that have to be run."""
        return [name for name in self.max_worse if name in WORKS]

    def breaches(
        self, changed: Sequence[Change], differ: bool, measures: Sequence[Measure], plans: Plans
    ) -> list[str]:
        """What B does that the gate forbids; ``differ``: whether the templates render otherwise."""
        found = list(self._worse(measures))
        if self.no_lower or self.max_worse.keys() - {"size"}:
            found += [f"plan {name} is only in A" for name in plans.lost]
        for limit, ours, theirs in plans.limits:
            if limit.rpartition(".")[2] in self.no_lower and theirs < ours:
                found.append(f"{limit} is lower: {ours} in A, {theirs} in B")
        sections = dict.fromkeys(change.section for change in changed)
        found += [f"{name} was changed" for name in sections if name in self.unchanged]
        if differ and "template" in self.unchanged:
            found.append("template was changed: a golden conversation is rendered otherwise")
        return found

    def _worse(self, measures: Sequence[Measure]) -> Iterator[str]:
        for name, most in self.max_worse.items():
            taken = [measure for measure in measures if measure.name == name]
            for measure in taken:
                what = f"{name}, plan {measure.plan}" if measure.plan else name
                if measure.worse is None:
                    yield f"{what}: not measured ({measure.reason or 'a value is missing'})"
                elif measure.worse > most:
                    yield f"{what}: worse by {_amount(measure)}, at most {_bound(measure, most)}"
            if not taken:
                yield f"{name}: not measured"


def read_gate(data: Mapping[str, Any], where: str) -> Gate:
    """The gate of a file; raises SettingsError with the name of what is wrong and what is legal."""
    if not data:
        raise SettingsError(f"{where}: holds nothing; give some of {', '.join(_KEYS)}")
    for key in data:
        _among(key, _KEYS, f"{where}: {key}")
    bounds = data.get("max_worse", {})
    if not isinstance(bounds, Mapping) or ("max_worse" in data and not bounds):
        raise SettingsError(
            f"{where}: max_worse: {bounds!r:.80} is not legal; it must map measures to bounds, as "
            f"{{perplexity: 0.5%}}"
        )
    for name in bounds:
        _among(name, MEASURES, f"{where}: max_worse.{name}")
    return Gate(
        {name: _share(value, f"{where}: max_worse.{name}") for name, value in bounds.items()},
        _names(data, "no_lower", LIMITS, where),
        _names(data, "unchanged", SECTIONS, where),
    )


def _names(data: Mapping[str, Any], key: str, legal: Sequence[str], where: str) -> tuple[str, ...]:
    if key not in data:
        return ()
    names = data[key]
    if not isinstance(names, list) or not names:
        raise SettingsError(
            f"{where}: {key}: {names!r:.80} is not legal; it must be a list of some of "
            f"{', '.join(legal)}"
        )
    for name in names:
        _among(name, legal, f"{where}: {key}: {name}")
    return tuple(names)


def _among(name: Any, legal: Sequence[str], where: str) -> None:
    if name not in legal:
        near = difflib.get_close_matches(str(name), legal, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingsError(f"{where}: is unknown; {hint}legal: {', '.join(legal)}")


def _share(value: Any, where: str) -> float:
    """``0.5%`` or ``0.005``; a negative one asks B to be better."""
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if isinstance(value, bool) or not math.isfinite(share):
        raise SettingsError(f"{where}: {value!r} is no share; give one such as 0.5% or 0.005")
    return share


def _amount(measure: Measure) -> str:
    assert measure.worse is not None
    return f"{measure.worse:.3%}" if measure.kind.relative else f"{measure.worse:.6g}"


def _bound(measure: Measure, most: float) -> str:
    return f"{most:.3%}" if measure.kind.relative else f"{most:.6g}"
