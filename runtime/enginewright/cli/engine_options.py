"""The options of every verb that loads an engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginewright.runtime.cores import MOST_THREADS

if TYPE_CHECKING:
    from enginewright.runtime.trust.policy import Policy

native_code_option = click.option(
    "--allow-native-code/--no-native-code",
    default=None,
    help="Run the artifact's own operators whoever compiled them, or never; by default those "
    "that this machine compiled or the installed package brings.",
)
"""Adds --allow-native-code, passed on as ``allow_native_code``."""


def _read_policy(
    context: click.Context, parameter: click.Parameter, path: Path | None
) -> Policy | None:
    if path is None:
        return None
    from enginewright.cli.settings_file import read_settings
    from enginewright.runtime.trust.policy import Policy

    return Policy.of(read_settings(path), str(path), path.parent)


policy_option = click.option(
    "--policy",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_read_policy,
    help="A file that says which artifacts may be used, and whether their code may run.",
)
"""Adds --policy, read and passed on as ``policy``."""

signature_option = click.option(
    "--require-signature",
    "keys",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    metavar="KEY",
    help="A public key that must have signed it; of several, one.",
)
"""Adds --require-signature, passed on as ``keys``."""

THREADS = click.IntRange(1, MOST_THREADS)
"""What --threads may be."""

_OPTIONS = (
    click.option("--threads", type=THREADS, help="By default all that it may use."),
    native_code_option,
)


class ArtifactName(click.Path):
    """What names an artifact; the empty text, which would be the current folder, does not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("it is empty: give an artifact's path", param, ctx)
        return super().convert(value, param, ctx)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --threads and --allow-native-code, passed on as ``threads`` and ``allow_native_code``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_json_object(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> dict[str, Any] | None:
    """The value of an option that is a JSON object."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"it is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise click.BadParameter('it must be an object, such as {"name": 5}')
    return found


def _read_speculation(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> dict[str, Any] | None:
    """The object, refused before anything is loaded, or a child process started, with it."""
    given = read_json_object(context, parameter, text)
    if given is not None:
        from enginewright.runtime.speculation.config import read_config

        read_config(given)
    return given


def speculation_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --speculative-config, read and passed on as ``speculative_config``."""
    return click.option(
        "--speculative-config",
        metavar="JSON",
        callback=_read_speculation,
        help='How tokens are drafted: {"method": "ngram", "num_speculative_tokens": 5}, or '
        '{"model": ARTIFACT, "num_speculative_tokens": 4}.',
    )(command)


def template_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --chat-template, passed on as ``chat_template``."""
    return click.option(
        "--chat-template",
        metavar="TEMPLATE",
        help="In place of the model's: a path, a template, or a built-in name.",
    )(command)
