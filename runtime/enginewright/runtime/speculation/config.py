"""What ``speculative_config`` says, with vLLM's keys, validated."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.sampling.checks import among, whole

Method = Literal["ngram", "draft_model"]

MOST_TOKENS = 64
LOOKUP_MAX, LOOKUP_MIN = 5, 2
"""Tokens of the patterns that n-grams are looked up by, where nothing is said."""

_NO_MODEL = (None, "ngram", "[ngram]")
"""What stands for n-grams where vLLM takes a model's name."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "draft_tensor_parallel_size": (None, 1),
    "max_model_len": (None,),
    "disable_by_batch_size": (None,),
    "disable_padded_drafter_batch": (None, False),
    "parallel_drafting": (None, False),
}
"""Keys of vLLM's that have nothing to set here, with the values that ask for nothing."""


@dataclass(frozen=True, kw_only=True)
class SpeculativeConfig:
    """How tokens are drafted. ``num_speculative_tokens``: at most so many for each step of a row.

    ``ngram``: what followed the last ``prompt_lookup_max`` (or fewer, at least
    ``prompt_lookup_min``) tokens where they stood before, in the prompt or in the output.
    ``draft_model``: what another artifact, ``model``, thinks most likely; it has the same
    vocabulary.
    """

    num_speculative_tokens: int
    method: Method | None = None
    """None: draft_model if there is a ``model``, else ngram."""
    model: str | os.PathLike[str] | None = None
    prompt_lookup_max: int | None = None
    prompt_lookup_min: int | None = None
    quantization: str | None = None
    """Of ``model``, as LLM's; so is ``revision``."""
    revision: str | None = None

    def __post_init__(self) -> None:
        tokens = _whole("num_speculative_tokens", self.num_speculative_tokens, MOST_TOKENS)
        object.__setattr__(self, "num_speculative_tokens", tokens)
        if self.method is None:
            method = "ngram" if among(self.model, _NO_MODEL) else "draft_model"
            object.__setattr__(self, "method", method)
        if not among(self.method, get_args(Method)):
            legal = " or ".join(map(repr, get_args(Method)))
            raise _illegal("method", self.method, f"must be {legal}")
        self._check_model()
        self._check_lookup()

    def _check_model(self) -> None:
        if self.method == "ngram" and not among(self.model, _NO_MODEL):
            raise _illegal("model", self.model, "must be left out with the method 'ngram'")
        is_path = isinstance(self.model, (str, os.PathLike)) and os.fspath(self.model)
        if self.method == "draft_model" and not is_path:
            raise _illegal("model", self.model, "must name the artifact that drafts")
        for name in ("quantization", "revision"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise _illegal(name, value, "must be text")

    def _check_lookup(self) -> None:
        longest, shortest = self.prompt_lookup_max, self.prompt_lookup_min
        if self.method == "draft_model":
            for name in ("prompt_lookup_max", "prompt_lookup_min"):
                if getattr(self, name) is not None:
                    raise _illegal(name, getattr(self, name), "is for the method 'ngram' alone")
            return
        if shortest is not None:
            shortest = _whole("prompt_lookup_min", shortest, MOST_TOKENS)
        longest = max(LOOKUP_MAX, shortest or 0) if longest is None else longest
        longest = _whole("prompt_lookup_max", longest, MOST_TOKENS)
        shortest = min(LOOKUP_MIN, longest) if shortest is None else shortest
        if shortest > longest:
            legal = f"must not be above prompt_lookup_max, which is {longest}"
            raise _illegal("prompt_lookup_min", shortest, legal)
        object.__setattr__(self, "prompt_lookup_max", longest)
        object.__setattr__(self, "prompt_lookup_min", shortest)

    @property
    def lookup(self) -> tuple[int, int]:
        """The longest pattern and the shortest one."""
        assert self.prompt_lookup_max is not None
        assert self.prompt_lookup_min is not None
        return self.prompt_lookup_max, self.prompt_lookup_min


def read_config(given: Any) -> SpeculativeConfig | None:
    """None speculates nothing. EnginewrightError names what is wrong, and what is legal."""
    if given is None or isinstance(given, SpeculativeConfig):
        return given
    if not isinstance(given, Mapping):
        raise EnginewrightError(
            f"speculative_config={given!r:.200} is not legal: it must be a dict such as "
            f'{{"method": "ngram", "num_speculative_tokens": 5}}, or None'
        )
    known = list(SpeculativeConfig.__dataclass_fields__)
    fields = {}
    for key, value in given.items():
        if key in known:
            fields[key] = value
        elif key not in _NEUTRAL:
            raise _unknown(key, known)
        elif not among(value, _NEUTRAL[key]):
            legal = " or ".join(map(repr, _NEUTRAL[key]))
            raise _illegal(key, value, f"is unsupported; legal is {legal}")
    if fields.get("num_speculative_tokens") is None:
        raise EnginewrightError(
            f"speculative_config={dict(given)!r:.200} has no num_speculative_tokens: it must say "
            f"how many tokens are drafted at most, from 1 to {MOST_TOKENS}"
        )
    return SpeculativeConfig(**fields)


def _whole(name: str, value: Any, most: int) -> int:
    return whole(f"speculative_config's {name}", value, 1, most, error=EnginewrightError)


def _illegal(name: str, value: object, legal: str) -> EnginewrightError:
    return EnginewrightError(f"speculative_config's {name}={value!r:.200} {legal}")


def _unknown(key: object, known: list[str]) -> EnginewrightError:
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"legal are {', '.join(known)}"
    return EnginewrightError(f"speculative_config has no key {key!r:.80}: {hint}")
