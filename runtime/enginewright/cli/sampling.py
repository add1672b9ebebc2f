"""The sampling options that ``run`` and ``chat`` share, laid over the model's own defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from enginewright.runtime.errors import SamplingParamsError

if TYPE_CHECKING:
    from enginewright.runtime import LLM, SamplingParams

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--max-tokens", type=int, help="Most tokens to generate."),
    click.option("--temperature", type=float, help="0 takes the likeliest token (greedy)."),
    click.option("--top-p", type=float, help="Sample from the likeliest tokens of this sum."),
    click.option("--top-k", type=int, help="Sample from the k likeliest tokens; 0: all."),
    click.option("--min-p", type=float, help="Leave out tokens below this share of the best."),
    click.option("--seed", type=int, help="Makes the output repeatable."),
    click.option("--stop", multiple=True, help="End at this text; may be given several times."),
    click.option("--ignore-eos", is_flag=True, default=None, help="Go on after the end token."),
)


def sampling_options(command: F) -> F:
    """Add the options; the command gets each as a keyword argument, None where not given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclasses.dataclass(frozen=True)
class Effective:
    """What a command runs with. ``origins``: field -> the option that set it."""

    params: SamplingParams
    origins: Mapping[str, str]


def effective(llm: LLM, options: Mapping[str, Any], max_tokens: int) -> Effective:
    """The model's defaults, changed by the options that were given.

    ``max_tokens`` holds where neither the option nor the model says how much to generate.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    origins = {name: f"--{name.replace('_', '-')}" for name in given}
    if "max_tokens" not in given and "max_tokens" not in llm.requests.defaults.origins:
        given["max_tokens"], origins["max_tokens"] = max_tokens, "the command's default"
    try:
        return Effective(dataclasses.replace(llm.get_default_sampling_params(), **given), origins)
    except SamplingParamsError as error:
        raise click.UsageError(str(error)) from error
