"""Logits processors of users: functions, classes, and installed ones by their names.

| tensor | shape | dtype   | meaning                                     |
|--------|-------|---------|---------------------------------------------|
| logits | [V]   | float32 | a row that a function may keep: no other    |
|        |       |         | writes to it                                |
"""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from enginewright.runtime.errors import EnginewrightError, RequestError, SamplingParamsError
from enginewright.runtime.sampling.processors import Logits

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "enginewright.logits_processors"
"""The group of entry points under which a package offers processors by name."""

Function: TypeAlias = Callable[..., ArrayLike]
"""Of (output ids, logits), or of (prompt ids, output ids, logits)."""
LogitsProcessor: TypeAlias = Function | type[Any]
"""A function, or a class whose instances are such."""


@functools.cache
def installed() -> dict[str, EntryPoint]:
    """The processors that installed packages offer, by name."""
    from importlib.metadata import entry_points  # as slow to import as all of sampling

    return {point.name: point for point in entry_points(group=GROUP)}


def check_named(name: str) -> None:
    """A request may only name what is installed: it cannot make the process import modules."""
    if name not in installed():
        raise SamplingParamsError(
            f"logits_processors={name!r:.200} is not legal: a text must name an installed "
            f"processor (an entry point of {GROUP}); {_list_installed()}"
        )


def load_processors(given: Any) -> tuple[LogitsProcessor, ...]:
    """Those that an LLM is constructed with: functions, names, or "module:attribute"."""
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise _illegal(given, "no list")
    return tuple(_imported(each) if isinstance(each, str) else _checked(each) for each in given)


class CustomProcessors:
    """The functions that see one output, called in their order.

    A class is instantiated, without arguments, for this output alone.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        of_request: Sequence[LogitsProcessor | str],
        of_llm: Sequence[LogitsProcessor] = (),
    ) -> None:
        self._prompt = prompt
        self._functions = [
            (name, function, _takes_prompt(function))
            for owner, processors in (("the LLM's ", of_llm), ("", of_request))
            for number, given in enumerate(processors)
            for name in [f"{owner}logits_processors[{number}] ({_name(given)})"]
            for function in [_ready(name, given)]
        ]

    def __bool__(self) -> bool:
        return bool(self._functions)

    def __call__(self, logits: Logits, output: Sequence[int]) -> Logits:
        for name, function, takes_prompt in self._functions:
            before = [list(self._prompt)] if takes_prompt else []
            # Lists of its own: what it does to them harms nobody.
            logits = _call(name, function, *before, list(output), logits=logits)
        return logits


def _imported(text: str) -> LogitsProcessor:
    module, colon, attributes = text.partition(":")
    if not colon and text not in installed():
        raise _illegal(text, _list_installed())
    try:
        if not colon:
            return _checked(installed()[text].load())
        return _checked(
            functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise _illegal(text, f"it cannot be imported: {error}") from error


def _checked(found: Any) -> LogitsProcessor:
    if not callable(found):
        raise _illegal(found, "it cannot be called")
    processor: LogitsProcessor = found
    return processor


def _illegal(given: object, why: str) -> EnginewrightError:
    return EnginewrightError(
        f"logits_processors={given!r:.200} is not legal ({why}): it must be a list of functions, "
        f'names of installed processors (entry points of {GROUP}), and "module:attribute"'
    )


def _list_installed() -> str:
    return f"installed are: {', '.join(sorted(installed())) or 'none'}"


def _ready(name: str, given: LogitsProcessor | str) -> Function:
    """The function itself: loaded if it was named, an instance if it is a class."""
    try:
        found = installed()[given].load() if isinstance(given, str) else given
        made = found() if isinstance(found, type) else found
    except BaseException as error:  # the code is the user's: anything may come
        _let_interrupts_through(error)
        raise SamplingParamsError(
            f"{name} cannot be made ready: {type(error).__name__}: {error}"
        ) from error
    if not callable(made):
        raise SamplingParamsError(f"{name} is not legal: it must be a function, or a class of such")
    function: Function = made
    return function


def _call(name: str, function: Function, *ids: list[int], logits: Logits) -> Logits:
    """What a user's function makes of the logits, as a row of its own; RequestError if nothing."""
    try:
        found = np.asarray(function(*ids, logits))
        if np.iscomplexobj(found):
            raise TypeError("it returned complex numbers")
        result = found.astype(np.float32)  # a copy: it may keep what it was given or returns
    except BaseException as error:  # the function is the user's: anything may come
        _let_interrupts_through(error)
        raise RequestError(f"{name} failed: {type(error).__name__}: {error}") from error
    if result.shape != logits.shape:
        raise RequestError(
            f"{name} returned the shape {list(result.shape)}: it must return logits of the shape "
            f"{list(logits.shape)}"
        )
    highest = result.max()  # NaN if there is any
    if np.isnan(highest) or highest == np.inf:
        what = "NaN" if np.isnan(highest) else "infinity"
        raise RequestError(f"{name} returned {what}: it must return finite numbers, or -inf")
    return result


def _let_interrupts_through(error: BaseException) -> None:
    """Ctrl-C reaches the main thread, and is not the function's; elsewhere it was raised by it."""
    main = threading.current_thread() is threading.main_thread()
    if main and isinstance(error, KeyboardInterrupt):
        raise error


def _name(given: LogitsProcessor | str) -> str:
    if isinstance(given, str):
        return given
    return str(getattr(given, "__name__", type(given).__name__))


def _takes_prompt(function: Function) -> bool:
    """Three parameters mean (prompt ids, output ids, logits); two, the latter."""
    try:
        return len(inspect.signature(function).parameters) == 3
    except ValueError:  # a built-in without a signature
        return False
