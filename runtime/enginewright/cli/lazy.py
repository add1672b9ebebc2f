"""A click group whose commands' modules are imported only when a command is used."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click


@dataclass(frozen=True)
class Verb:
    """Where a command lives (as ``command`` in ``module``), and its line in the help."""

    module: str
    help: str


class LazyGroup(click.Group):
    """Commands by name from a table; the group's own help imports none of them.

    ``default`` names the command that is meant when the first argument names none.
    """

    def __init__(
        self, *args: Any, verbs: Mapping[str, Verb], default: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = verbs
        self._default = default

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = self._verbs.get(cmd_name)
        if verb is None:
            return None
        command: click.Command = importlib.import_module(verb.module).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in self._verbs.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self._default is not None and self._names_none(ctx, args):
            if _stands_as_a_name(args) or self._is_mistyped(args[0]):
                self._refuse(ctx, args[0])
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self._verbs:
            self._refuse(ctx, args[0])
        return super().resolve_command(ctx, args)

    def _is_mistyped(self, word: str) -> bool:
        return bool(difflib.get_close_matches(word, self._verbs, n=1)) and not Path(word).exists()

    def _refuse(self, ctx: click.Context, name: str) -> NoReturn:
        near = difflib.get_close_matches(name, self._verbs, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        ctx.fail(f"No such command {name!r}. {hint}There are: {', '.join(self._verbs)}.")

    def _names_none(self, ctx: click.Context, args: list[str]) -> bool:
        asks_help = bool(args) and args[0] in self.get_help_option_names(ctx)
        return bool(args) and not asks_help and args[0] not in self._verbs


def _stands_as_a_name(args: Sequence[str]) -> bool:
    """Whether the first word has another behind it, as a command's name has its argument."""
    return len(args) > 1 and not any(word.startswith("-") for word in args[:2])
