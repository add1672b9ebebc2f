"""A click group whose commands' modules are imported only when a command is used."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0], self._verbs, n=1)
        if args[0] not in self._verbs and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def _names_none(self, ctx: click.Context, args: list[str]) -> bool:
        asks_help = bool(args) and args[0] in self.get_help_option_names(ctx)
        return bool(args) and not asks_help and args[0] not in self._verbs
