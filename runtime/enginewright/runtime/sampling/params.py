"""What a user may ask of sampling, validated: vLLM's names, defaults and rules."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.errors import ArtifactError, SamplingParamsError
from enginewright.runtime.manifest import SamplingDefault

logger = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5
LOWEST_TEMPERATURE = 0.01
SEED_RANGE = (-(2**63), 2**64 - 1)
_INFINITY = math.inf

# Keys of a model's generation config that become defaults, and the field that each one sets.
_DEFAULTS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "max_tokens": "max_tokens",
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when it ends.

    Checked and normalised at construction; SamplingParamsError names the field, the value
    and what is legal.
    """

    temperature: float = 1.0
    """0 to 2; below 1e-5 the likeliest token is taken (greedy) and top_p, top_k and min_p
    have no effect; from there to 0.01 it is raised to 0.01."""
    top_p: float = 1.0
    """Above 0, up to 1: sample from the fewest likeliest tokens that together reach it."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 or -1: from all."""
    min_p: float = 0.0
    """0 to 1: leave out tokens less likely than this times the likeliest one."""
    seed: int | None = None
    """Makes the request repeatable; None or -1: fresh entropy. The draws do not depend on what
    runs beside it, nor do the logits on an engine that declares itself batch invariant."""
    stop: str | Sequence[str] | None = None
    """Strings that end the output; a tuple once constructed."""
    stop_token_ids: Sequence[int] | None = None
    """Token ids that end the output, next to the model's own; a tuple once constructed."""
    ignore_eos: bool = False
    """Go on after the model's end-of-sequence tokens."""
    max_tokens: int | None = 16
    """Most tokens to generate, at least 1; None: until the context is full."""
    min_tokens: int = 0
    """End-of-sequence and stop tokens cannot be chosen before this many tokens."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    include_stop_str_in_output: bool = False
    """Keep the stop string at the end of the text."""
    detokenize: bool = True
    """Make text from the tokens; needed for ``stop``."""
    repetition_penalty: float = 1.0
    """Above 0; more than 1 discourages tokens of the prompt and the output."""
    presence_penalty: float = 0.0
    """-2 to 2; subtracted from the logit of every token that is in the output."""
    frequency_penalty: float = 0.0
    """-2 to 2; subtracted as often as a token is in the output."""
    logprobs: int | None = None
    """Give the log probability of the chosen token and of this many likeliest ones; -1: all."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_lengths()
        self._check_stops()
        self._check_flags()
        if self.greedy:
            self._set(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
        elif self.temperature < LOWEST_TEMPERATURE:
            logger.warning(
                "temperature=%s could overflow; %s is used", self.temperature, LOWEST_TEMPERATURE
            )
            self._set(temperature=LOWEST_TEMPERATURE)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` with the type that it has once constructed."""
        return tuple(self.stop or ())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """``stop_token_ids`` with the type that it has once constructed."""
        return tuple(self.stop_token_ids or ())

    def _check_numbers(self) -> None:
        self._set(
            temperature=_real("temperature", self.temperature, 0.0, 2.0),
            top_p=_real("top_p", self.top_p, 0.0, 1.0, open_low=True),
            top_k=max(0, _whole("top_k", self.top_k, -1)),
            min_p=_real("min_p", self.min_p, 0.0, 1.0),
            repetition_penalty=_real(
                "repetition_penalty", self.repetition_penalty, 0.0, _INFINITY, open_low=True
            ),
            presence_penalty=_real("presence_penalty", self.presence_penalty, -2.0, 2.0),
            frequency_penalty=_real("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
        )
        if self.seed is not None:
            seed = _whole("seed", self.seed, *SEED_RANGE)
            self._set(seed=None if seed == -1 else seed)

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            self._set(max_tokens=_whole("max_tokens", self.max_tokens, 1))
        most = _INFINITY if self.max_tokens is None else self.max_tokens
        self._set(min_tokens=_whole("min_tokens", self.min_tokens, 0, most, "max_tokens"))
        if isinstance(self.logprobs, bool):
            self._set(logprobs=1 if self.logprobs else None)
        if self.logprobs is not None:
            self._set(logprobs=_whole("logprobs", self.logprobs, -1))

    def _check_stops(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else _sequence("stop", self.stop)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise _illegal("stop", text, "text of at least one character, or a list of such")
        if stop and not self.detokenize:
            raise SamplingParamsError(
                f"stop={stop!r} needs text: set detokenize=True, or use stop_token_ids"
            )
        ids = _sequence("stop_token_ids", self.stop_token_ids)
        unique = dict.fromkeys(_whole("stop_token_ids", token, 0) for token in ids)
        self._set(stop=tuple(dict.fromkeys(stop)), stop_token_ids=tuple(unique))

    def _check_flags(self) -> None:
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            self._check_flag(name)
        self._check_flag("detokenize")

    def _check_flag(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, bool):
            raise _illegal(name, value, "True or False")

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


def resolve_defaults(defaults: Mapping[str, SamplingDefault]) -> SamplingParams:
    """The parameters of a request that gives none: the model's own over vLLM's defaults.

    A value that sampling does not allow raises ArtifactError with its origin.
    """
    fields: dict[str, Any] = {}
    for key, default in defaults.items():
        if key not in _DEFAULTS:
            raise ArtifactError(
                f"the manifest has a sampling default {key}={default.value!r} "
                f"(from {default.origin}); known are {', '.join(_DEFAULTS)}"
            )
        try:
            SamplingParams(**fields | {_DEFAULTS[key]: default.value})
        except SamplingParamsError as error:
            raise ArtifactError(
                f"the model's sampling default from {default.origin} cannot be used: {error}; "
                f"give sampling_params, or rebuild the artifact from a corrected file"
            ) from error
        fields[_DEFAULTS[key]] = default.value
    return SamplingParams(**fields)


def _real(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    legal = f"a finite number {'above' if open_low else 'from'} {low:g}"
    legal += f" to {high:g}" if high < _INFINITY else ""
    if not number or not math.isfinite(value):  # type: ignore[arg-type]
        raise _illegal(name, value, legal)
    real = float(value)  # type: ignore[arg-type]
    if real < low or real > high or (open_low and real == low):
        raise _illegal(name, value, legal)
    return real


def _whole(name: str, value: object, low: int, high: float = _INFINITY, high_name: str = "") -> int:
    legal = f"an integer of at least {low}"
    if high < _INFINITY:
        legal = f"an integer from {low} to {high}" + (f" ({high_name})" if high_name else "")
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise _illegal(name, value, legal)
    whole = int(value)
    if not low <= whole <= high:
        raise _illegal(name, value, legal)
    return whole


def _sequence(name: str, value: object) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise _illegal(name, value, "a list, or None")
    return tuple(value)


def _illegal(name: str, value: object, legal: str) -> SamplingParamsError:
    return SamplingParamsError(f"{name}={value!r} is not legal: it must be {legal}")
