"""What a template's work costs, charged before the work is done.

One unit is about a nanosecond: a character costs 1, to copy a reference 4, an element of a
list 32, a step of a loop or a call 64. The same template and messages always cost the same,
whatever the clock says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from sys import maxsize
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined

STEP = 64
ELEMENT = 32
REFERENCE = 4
LARGEST_POWER_BITS = 1 << 16
_LONGEST_NUMBER = 12

# Functions (filters, tests, methods) that take no longer for a larger value.
_CONSTANT = frozenset(
    ["attr", "d", "default", "first", "get", "items", "keys", "last", "length", "values"]
)
# Functions that look at a value's elements, not into them.
_SHALLOW = frozenset(
    ["copy", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"]
)
# Functions whose result can be as large as the value's size times that of the arguments.
_MULTIPLYING = frozenset(
    [
        "batch",
        "center",
        "expandtabs",
        "indent",
        "join",
        "ljust",
        "replace",
        "rjust",
        "slice",
        "to_bytes",
        "tojson",
        "translate",
        "zfill",
    ]
)


class OutOfBoundsError(SecurityError):
    """The template asked for more work than its budget."""


class Budget:
    """Units of work that are left."""

    def __init__(self, units: int) -> None:
        self._units = self._left = units

    def charge(self, units: int) -> None:
        """Take units; OutOfBoundsError when they are not left."""
        self._left -= units
        if self._left < 0:
            raise OutOfBoundsError(f"it asks for more than {self._units} units of work")

    def charge_size(self, value: Any) -> int:
        """Charge for every character and element in the value; the charge."""
        before = self._left
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, (str, bytes)):
                self.charge(len(item))
            elif isinstance(item, int):
                self.charge(item.bit_length() >> 3)
            elif isinstance(item, range):
                self.charge(ELEMENT * len(item))
            elif isinstance(item, Mapping):
                self.charge(ELEMENT * len(item))
                stack.extend(item.keys())
                stack.extend(item.values())
            elif _is_sized(item):
                self.charge(ELEMENT * len(item))
                stack.extend(item)
        return before - self._left

    def charge_length(self, value: Any, units: int = REFERENCE) -> None:
        """Charge for every element of the value, not for what they hold."""
        if _is_sized(value):
            self.charge(units * len(value))

    def charge_function(self, name: str, value: Any, args: tuple[Any, ...]) -> None:
        """Charge for a filter, test or method of ``value``."""
        self.charge_size(args)
        if name in _CONSTANT:
            return
        if name in _SHALLOW:
            self.charge_length(value, ELEMENT)
            return
        size = self.charge_size(value)
        if name in _MULTIPLYING:
            self.charge((1 + size) * _magnitude(args))
        elif name == "format" and isinstance(value, str):
            self.charge_format(value, args)

    def charge_operator(self, operator: str, left: Any, right: Any) -> None:
        """Charge for ``left operator right``."""
        self.charge(STEP)
        whole = isinstance(left, int), isinstance(right, int)
        if operator == "**" and all(whole):
            if left.bit_length() * right > LARGEST_POWER_BITS:
                raise OutOfBoundsError("it asks for a power that is too large")
        elif operator == "%" and isinstance(left, (str, bytes)):
            self.charge_format(left, right)
        elif operator == "*" and any(whole) and not all(whole):
            times, value = (left, right) if whole[0] else (right, left)
            self.charge(max(0, times) * self.charge_size(value))
        elif operator in "*/%" and all(whole):
            self.charge(left.bit_length() * right.bit_length() >> 10)
        else:
            self.charge_size((left, right))

    def charge_format(self, text: str | bytes, args: Any, by_argument: bool = False) -> None:
        """Charge for a format: its text, its arguments, the widths and precisions in it.

        ``by_argument``: the arguments, too, may be widths.
        """
        shown = text if isinstance(text, str) else text.decode("latin-1")
        self.charge_size((shown, args))
        if re.search(r"%[^a-zA-Z%]*\*", shown):
            raise OutOfBoundsError("it asks for a format whose width is an argument")
        for digits in re.findall(r"\d+", shown):
            self.charge(int(digits[:_LONGEST_NUMBER]))
        if by_argument:
            self.charge(_magnitude(args))


_CURRENT: ContextVar[Budget] = ContextVar("template_budget")


def current_budget() -> Budget:
    """The budget that this thread's template works on."""
    return _CURRENT.get()


@contextmanager
def work_within(units: int) -> Iterator[None]:
    """Whatever templates do inside is charged to one new budget."""
    token = _CURRENT.set(Budget(units))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def size_of(value: Any) -> int:
    """The size of data that is given to a template, in units of work."""
    return Budget(maxsize).charge_size(value)


def _is_sized(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, Undefined)


def _magnitude(value: Any) -> int:
    """How far an argument can multiply a result: characters, elements, or the number itself."""
    if isinstance(value, bool):
        return 0
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, Mapping):
        return len(value) + sum(map(_magnitude, value.values()))
    if isinstance(value, (list, tuple)):
        return len(value) + sum(map(_magnitude, value))
    return len(value) if isinstance(value, (str, bytes)) else 0
