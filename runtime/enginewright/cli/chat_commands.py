"""What a line typed into ``chat`` means: pure functions, no terminal."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling.params import SamplingParams

HELP = """\
/help              this text
/clear             forget the conversation (the system message stays)
/set               show the sampling parameters
/set KEY=VALUE     change one, such as /set temperature=0.7; /set system=TEXT
/exit              leave; so does the end of input (Ctrl-D)
Ctrl-C             stop the answer that is being written"""

SETTABLE = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "ignore_eos",
    "max_tokens",
    "min_tokens",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "processor_order",
)
"""Parameters that make no sense in a conversation that shows nothing but text."""


@dataclass(frozen=True)
class Say:
    """A message to the model."""

    text: str


@dataclass(frozen=True)
class Show:
    """Text for the user: help, or what was wrong with the line."""

    text: str


@dataclass(frozen=True)
class Set:
    """Change a setting; without a key, show all."""

    key: str = ""
    value: str = ""


@dataclass(frozen=True)
class Clear:
    """Forget the conversation."""


@dataclass(frozen=True)
class Exit:
    """Leave the program."""


Action = Say | Show | Set | Clear | Exit


def parse(line: str) -> Action | None:
    """The action that a line asks for; None for a blank line.

    A line that begins with one slash is a command, with two a message that begins with a slash.
    """
    text = line.strip()
    if not text:
        return None
    if text.startswith("//"):
        return Say(text[1:])
    if not text.startswith("/"):
        return Say(text)
    name, _, rest = text[1:].partition(" ")
    return _command(name, rest.strip())


def _command(name: str, rest: str) -> Action:
    if name == "set":
        return _set(rest)
    simple: dict[str, Action] = {"help": Show(HELP), "clear": Clear(), "exit": Exit()}
    if name not in simple:
        return Show(f"/{name} is no command; there are /help, /clear, /set and /exit")
    return Show(f"/{name} takes nothing after it") if rest else simple[name]


def _set(rest: str) -> Action:
    key, separator, value = rest.partition("=")
    if not rest:
        return Set()
    if not separator or not key.strip():
        return Show("write /set KEY=VALUE, such as /set temperature=0.7")
    return Set(key.strip(), value.strip())


def settable() -> list[str]:
    """The sampling parameters that /set changes."""
    return list(SETTABLE)


def change(params: SamplingParams, key: str, value: str) -> SamplingParams:
    """``params`` with one parameter read from text; raises SamplingParamsError."""
    if key not in settable():
        raise SamplingParamsError(f"{key} is no parameter; there are {', '.join(settable())}")
    return dataclasses.replace(params, **{key: _read(key, value)})


def _read(key: str, text: str) -> Any:
    """The text as the parameter's type: none, a truth value, an integer, a number, or text."""
    kinds = _kinds(typing.get_type_hints(SamplingParams)[key])
    if types.NoneType in kinds and text.lower() in ("none", ""):
        return None
    if bool in kinds:
        return {"true": True, "false": False}.get(text.lower(), text)
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def _kinds(hint: Any) -> frozenset[Any]:
    return frozenset(typing.get_args(hint) or (hint,))
