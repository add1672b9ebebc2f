"""Checks of single values: what is illegal raises an error with the name, value and range."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

from enginewright.runtime.errors import EnginewrightError, SamplingParamsError

INFINITY = math.inf
_TRUTHS = (bool, np.bool_)


def real(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    """The value as a float from ``low`` (or above it) to ``high``."""
    legal = f"a finite number {'above' if open_low else 'from'} {low:g}"
    legal += f" to {high:g}" if high < INFINITY else ""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise illegal(name, value, legal)
    try:
        found = float(value)
    except OverflowError as error:  # an integer that no float holds
        raise illegal(name, value, legal) from error
    if not math.isfinite(found) or not low <= found <= high or (open_low and found == low):
        raise illegal(name, value, legal)
    return found


def whole(
    name: str,
    value: object,
    low: int,
    high: float = INFINITY,
    *,
    high_name: str = "",
    otherwise: str = "",
    error: type[EnginewrightError] = SamplingParamsError,
) -> int:
    """The value as an int from ``low`` to ``high``; ``otherwise`` says what else is legal."""
    legal = f"an integer of at least {low}"
    if high < INFINITY:
        legal = f"an integer from {low} to {high}" + (f" ({high_name})" if high_name else "")
    legal += f", or {otherwise}" if otherwise else ""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise illegal(name, value, legal, error)
    found = int(value)
    if not low <= found <= high:
        raise illegal(name, value, legal, error)
    return found


def maybe_whole(
    name: str,
    value: object,
    low: int,
    high: float = INFINITY,
    *,
    otherwise: str = "None",
    error: type[EnginewrightError] = SamplingParamsError,
) -> int | None:
    """None, or the value as an int from ``low`` to ``high``; ``otherwise`` says what None does."""
    if value is None:
        return None
    return whole(name, value, low, high, otherwise=otherwise, error=error)


def flag(name: str, value: object) -> None:
    """True or False, nothing that merely counts as such."""
    if not isinstance(value, bool):
        raise illegal(name, value, "True or False")


def member(name: str, value: object, kind: type) -> None:
    """An instance of ``kind``, or None."""
    if value is not None and not isinstance(value, kind):
        raise illegal(name, value, f"a {kind.__name__}, or None")


def among(value: object, legal: Iterable[object]) -> bool:
    """Whether the value is one of the legal ones. An array, which compares by item, is not."""
    return any(isinstance(same := value == each, _TRUTHS) and bool(same) for each in legal)


def sequence(name: str, value: object) -> tuple[Any, ...]:
    """The items of a list; none for None."""
    if value is None:
        return ()
    legal = "a list, or None"
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise illegal(name, value, legal)
    try:
        return tuple(value)
    except TypeError as error:  # a numpy array without dimensions
        raise illegal(name, value, legal) from error


def token_ids(name: str, value: object) -> tuple[int, ...]:
    """The ids of a list, each once, in order; none for None."""
    return tuple(dict.fromkeys(whole(name, token, 0) for token in sequence(name, value)))


def texts(name: str, value: object) -> tuple[str, ...]:
    """The texts of a list, each once, in order; none for None."""
    items = sequence(name, value)
    for text in items:
        if not isinstance(text, str) or not text:
            raise illegal(name, text, "text of at least one character, or a list of such")
    return tuple(dict.fromkeys(items))


def in_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    """The model's vocabulary is only known once a request meets an engine."""
    outside = [token for token in ids if token >= vocab_size]
    if outside:
        raise SamplingParamsError(
            f"{name}={outside} are not in the vocabulary: it must be ids from 0 to {vocab_size - 1}"
        )


def illegal(
    name: str, value: object, legal: str, error: type[EnginewrightError] = SamplingParamsError
) -> EnginewrightError:
    return error(f"{name}={value!r:.200} is not legal: it must be {legal}")
