"""Jinja as transformers sets it up for chat templates, with every operation charged.

A template comes with a model and is code of a stranger. Jinja's sandbox keeps it from Python's
internals; the budget keeps it from running or growing without end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

from enginewright.runtime.sandbox.budget import STEP, OutOfBoundsError, current_budget
from enginewright.runtime.sandbox.metering import LENGTH_OF, SIZE_OF, STEPS, check_name, meter

LARGEST_PRECISION = 100

# Filters that chat templates have no use for and whose work is hard to bound are not here.
_FILTERS = (
    "abs attr batch capitalize center count d default dictsort e escape first float forceescape "
    "format groupby indent int items join last length list lower map max min reject rejectattr "
    "replace reverse round safe select selectattr slice sort string sum title trim truncate "
    "unique upper urlencode wordcount"
)
_COMPARING_TESTS = "in == eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le"


class RefusedByTemplateError(TemplateError):
    """The template called raise_exception."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs templates; both must happen inside ``work_within``."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimizer would run filters on constants while compiling
            finalize=_charge_output,
            extensions=[GenerationTag, loopcontrols],
        )
        known: dict[str, Callable[..., Any]] = {**self.filters, "tojson": _to_json}
        known |= {"round": _bounded_round(known["round"]), "sum": _sum_of_numbers(known["sum"])}
        self.filters = {name: _metered(name, known[name]) for name in _FILTERS.split()}
        self.filters |= {"tojson": _metered("tojson", _to_json)}
        self.filters |= {SIZE_OF: _charge_size, LENGTH_OF: _charge_length, STEPS: _charge_steps}
        tests: Mapping[str, Any] = self.tests
        self.tests |= {name: _metered(name, tests[name]) for name in _COMPARING_TESTS.split()}
        del self.globals["lipsum"]
        self.globals |= {
            "dict": _make_dict,
            "namespace": _make_namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(meter(source), *args, **kwargs)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuse at once, where Jinja would print nothing."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__} is unsafe")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Charge the operator, then run it."""
        current_budget().charge_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    # The names of the parameters leave all keywords to the template.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Charge the call, then make it."""
        budget = current_budget()
        budget.charge(STEP)
        given = (*args, *kwargs.values())
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes, int, float, Sequence, Mapping)):
            budget.charge_function(__obj.__name__, owner, given)
        elif not isinstance(__obj, Macro):
            budget.charge_size(given)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Charge str.format for the widths that are in the format or in its arguments."""
        formatter = super().wrap_str_format(value)
        if formatter is None:
            return None

        @wraps(formatter)
        def charged(*args: Any, **kwargs: Any) -> str:
            text = value.__self__
            nested = re.search(r"\{[^{}]*\{", text) is not None
            current_budget().charge_format(text, (*args, *kwargs.values()), by_argument=nested)
            return formatter(*args, **kwargs)

        return charged


class GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Read up to the end tag; what is set inside stays inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that is charged for its value and arguments first."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if name == "join" and isinstance(given[first], Iterator):
            given[first] = list(given[first])
        budget = current_budget()
        budget.charge(STEP)
        budget.charge_function(name, given[first], (*given[first + 1 :], *kwargs.values()))
        return function(*given, **kwargs)

    return charged


def _charge_steps(units: int) -> bool:
    current_budget().charge(units)
    return True


def _charge_size(value: Any) -> Any:
    current_budget().charge_size(value)
    return value


def _charge_length(value: Any) -> Any:
    current_budget().charge_length(value)
    return value


@pass_context  # so that it is not called while compiling
def _charge_output(context: Context, value: Any) -> Any:
    return _charge_size(value)


def _bounded_round(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def bounded(value: Any, precision: int = 0, method: str = "common") -> Any:
        if abs(precision) > LARGEST_PRECISION:
            raise OutOfBoundsError(f"it rounds to {precision} digits, at most {LARGEST_PRECISION}")
        return function(value, precision, method)

    return bounded


def _sum_of_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def numbers(*args: Any, **kwargs: Any) -> Any:
        # Adding up lists copies all that came before with every one.
        if not all(
            isinstance(start, (int, float)) for start in (*args[3:], kwargs.get("start", 0))
        ):
            raise SecurityError("sum is for numbers")
        return function(*args, **kwargs)

    return numbers


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter would escape it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise RefusedByTemplateError(message)


def _strftime_now(format: str) -> str:
    current_budget().charge_format(format, ())
    return datetime.now().strftime(format)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _TemplateNamespace(Namespace):
    """A namespace that does not print what it holds: it may hold itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _make_namespace(*args: Any, **kwargs: Any) -> Namespace:
    attributes = dict(*args, **kwargs)
    for name in attributes:
        check_name(name)
    return _TemplateNamespace(attributes)
