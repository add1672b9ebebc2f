"""One compiled chat template: source in, text out, every failure a ChatTemplateError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from traceback import walk_tb
from typing import Any

from jinja2.exceptions import TemplateError

from enginewright.runtime.errors import ChatTemplateError
from enginewright.runtime.sandbox.budget import OutOfBoundsError, size_of, work_within
from enginewright.runtime.sandbox.environment import ChatEnvironment, RefusedByTemplateError
from enginewright.runtime.sandbox.metering import iterates_content

LONGEST_SOURCE = 1 << 18
LEAST_WORK = 1 << 24
WORK_PER_SIZE = 64
LEAST_OUTPUT = 1 << 20
OUTPUT_PER_SIZE = 16

# What a template can raise while it is compiled or runs: its own errors and Python's.
_FAILURES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class CompiledTemplate:
    """A template in the sandbox. ``wants_parts``: it loops over a content's parts itself.

    The budget of a rendering grows with the data. May be shared by threads.
    """

    def __init__(self, source: str) -> None:
        if len(source) > LONGEST_SOURCE:
            raise ChatTemplateError(
                f"the chat template has {len(source)} characters; it must be of at most "
                f"{LONGEST_SOURCE}"
            )
        environment = ChatEnvironment()
        try:
            with work_within(LEAST_WORK):
                self.wants_parts = iterates_content(environment.parse(source))
                self._template = environment.from_string(source)
        except _FAILURES as error:
            raise _failure(error) from error

    def render(self, values: Mapping[str, Any]) -> str:
        """The template's text for plain data."""
        try:
            return self._render(values)
        except RefusedByTemplateError as error:
            raise ChatTemplateError(f"the chat template refuses the messages: {error}") from error
        except _FAILURES as error:
            raise _failure(error) from error

    def _render(self, values: Mapping[str, Any]) -> str:
        size = size_of(values)
        room = LEAST_OUTPUT + OUTPUT_PER_SIZE * size
        pieces: list[str] = []
        with work_within(LEAST_WORK + WORK_PER_SIZE * size):
            for piece in self._template.generate(values):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise OutOfBoundsError("it writes far more than it was given")
        return "".join(pieces)


def _failure(error: BaseException) -> ChatTemplateError:
    lines = list(_template_lines(error))
    place = f" (line {lines[-1]})" if lines else ""
    text = str(error) or type(error).__name__
    return ChatTemplateError(
        f"the chat template fails{place}: {text}; give a chat_template that suits the model"
    )


def _template_lines(error: BaseException) -> Iterator[int]:
    line = getattr(error, "lineno", None)
    if isinstance(line, int):
        yield line
    for frame, at in walk_tb(error.__traceback__):
        if frame.f_code.co_filename == "<template>":
            yield at
