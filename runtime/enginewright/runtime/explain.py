"""Every sampling parameter that a call would run with, and where each came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.sampling.defaults import Defaults
from enginewright.runtime.sampling.params import SamplingParams

CALL, DEFAULT = "given by the call", "default"


@dataclass(frozen=True)
class EffectiveParameter:
    """One parameter: its value after all rules, and what set it."""

    name: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Explanation:
    """The parameters of a call. ``str`` of it is a table; ``explanation["top_p"]`` is one row."""

    parameters: tuple[EffectiveParameter, ...]

    def __iter__(self) -> Iterator[EffectiveParameter]:
        return iter(self.parameters)

    def __getitem__(self, name: str) -> EffectiveParameter:
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)

    def __str__(self) -> str:
        rows = [(each.name, f"{each.value!r:.60}", each.origin) for each in self.parameters]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(
            f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows
        )

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """By name: value and origin."""
        return {each.name: {"value": each.value, "origin": each.origin} for each in self.parameters}


def explain(
    params: SamplingParams,
    defaults: Defaults,
    *,
    given: Mapping[str, str] | None = None,
    facts: Mapping[str, tuple[Any, str]] | None = None,
) -> Explanation:
    """Explain ``params``. ``given``: field -> what set it, where that is not ``defaults``.

    Without ``given``, the parameters were given as a whole: what they leave at its default is at
    its default, whatever the model would have. A value that was given and equals the default is
    told as the default: parameters do not remember. ``facts``: what holds beside the parameters.
    """
    neutral = SamplingParams()
    rows = []
    for each in dataclasses.fields(params):
        value = getattr(params, each.name)
        changed = value != getattr(neutral, each.name)
        if given is None:
            origin = CALL if changed else _passed_over(each.name, defaults)
        else:
            origin = given.get(each.name) or defaults.origins.get(each.name) or DEFAULT
            asked = each.name in given or each.name in defaults.origins
            if params.greedy and asked and each.name in ("top_p", "top_k", "min_p"):
                origin = f"greedy (temperature 0), whatever {origin} says"
        rows.append(EffectiveParameter(each.name, value, origin))
    rows += [EffectiveParameter(name, *fact) for name, fact in (facts or {}).items()]
    return Explanation(tuple(rows))


def _passed_over(name: str, defaults: Defaults) -> str:
    """A field that the call left alone, although the model has another default."""
    if name not in defaults.origins:
        return DEFAULT
    value = getattr(defaults.params, name)
    return f"{DEFAULT}; not {value!r} of {defaults.origins[name]}, for sampling_params were given"
