"""The command ``enginewright``: the table of verbs, and how errors leave the program.

Exit codes: 0 good, 1 failed (``error: ...`` on stderr), 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import IO, Any

import click

from enginewright.cli.lazy import LazyGroup, Verb
from enginewright.cli.streams import give_up_output, settle_streams
from enginewright.runtime.errors import EnginewrightError

VERBS = {
    "plan": Verb("enginewright.cli.plan", "Say what a build takes, before it runs."),
    "build": Verb("enginewright.cli.build", "Build an artifact from a recipe, or many."),
    "cache": Verb("enginewright.cli.cache", "List or trim what builds keep for later ones."),
    "inspect": Verb("enginewright.cli.inspect", "Show what an artifact holds."),
    "doctor": Verb("enginewright.cli.doctor", "Say whether an artifact runs here."),
    "lint": Verb("enginewright.cli.lint", "Check special tokens, chat template and prompts."),
    "lint-recipe": Verb("enginewright.cli.lint_recipe", "Check recipes."),
    "verify": Verb("enginewright.cli.verify", "Check an artifact against its reference values."),
    "report": Verb("enginewright.cli.report", "Write a page about an artifact."),
    "diff": Verb("enginewright.cli.diff.command", "Compare two artifacts, and hold B to a gate."),
    "sign": Verb("enginewright.cli.sign", "Sign an artifact with a key."),
    "push": Verb("enginewright.cli.push", "Push an artifact to a registry."),
    "pull": Verb("enginewright.cli.pull", "Pull an artifact from a registry."),
    "run": Verb("enginewright.cli.run", "Continue a prompt, or answer it with --chat."),
    "chat": Verb("enginewright.cli.chat", "Talk with a model."),
    "serve": Verb("enginewright.cli.serve", "Serve artifacts to clients of the OpenAI API."),
    "batch": Verb("enginewright.cli.batch", "Answer a file of OpenAI batch requests."),
    "bench": Verb("enginewright.cli.bench.group", "Measure speed, start-up and memory."),
}


class Failure(click.ClickException):
    """An error that ends the program with exit code 1 and no traceback."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.format_message()}", err=file is None, file=file)


class _Root(LazyGroup):
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        if not settle_streams():
            raise Failure("standard output is closed; to run without it, send it to /dev/null")
        with _failures():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _failures():
            return super().invoke(ctx)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """What a user or the system did wrong, without a traceback."""
    try:
        yield
    except EnginewrightError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # click ends quietly when the reader has gone
            raise
        if error.filename is None:
            give_up_output()
        raise Failure(f"{error.strerror}: {error.filename or 'output'}") from error


@click.group(
    cls=_Root,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 good, 1 failed, 2 wrong usage.",
)
@click.version_option(None, "--version", package_name="enginewright", prog_name="enginewright")
def main() -> None:
    """Build language-model engines ahead of time, check them, and run them."""
