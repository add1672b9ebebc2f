"""``enginewright chat``: a conversation in the terminal, streamed, with its speed."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginewright.cli.chat_commands import (
    HELP,
    Clear,
    Exit,
    Say,
    Set,
    Show,
    change,
    parse,
    settable,
)
from enginewright.cli.engine_options import (
    ArtifactName,
    engine_options,
    policy_option,
    speculation_option,
    template_option,
)
from enginewright.cli.sampling import effective, sampling_options
from enginewright.cli.text import say
from enginewright.runtime.errors import ContextLengthError, RequestError

if TYPE_CHECKING:
    from enginewright.runtime import LLM, Policy, SamplingParams

MAX_TOKENS = 1024
PROMPT = "> "


@click.command(epilog=f"At the prompt:\n\n\b\n{HELP}")
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option("--system", metavar="TEXT", help="A system message before the conversation.")
@template_option
@sampling_options
@engine_options
@policy_option
@speculation_option
def command(
    artifact: Path,
    system: str | None,
    chat_template: str | None,
    threads: int | None,
    allow_native_code: bool | None,
    policy: Policy | None,
    speculative_config: Mapping[str, Any] | None,
    **options: Any,
) -> None:
    """Talk with the model of ARTIFACT."""
    from enginewright.runtime import LLM

    with LLM(
        artifact,
        threads=threads,
        allow_native_code=allow_native_code,
        policy=policy,
        chat_template=chat_template,
        speculative_config=speculative_config,
    ) as llm:
        params = effective(llm, options, MAX_TOKENS).params
        interactive = sys.stdin.isatty()
        if interactive:
            _line_editing()
            click.echo(f"{llm.manifest.name}. /help lists the commands.")
        _talk(Conversation(llm, params, system), PROMPT if interactive else "")


def _line_editing() -> None:
    """History and editing keys in input(), where this Python has readline."""
    with contextlib.suppress(ImportError):
        __import__("readline")


def _talk(conversation: Conversation, prompt: str) -> None:
    while True:
        try:
            line = input(prompt)
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo("\n/exit or Ctrl-D leaves")
            continue
        action = parse(line)
        if isinstance(action, Exit):
            return
        try:
            conversation.do(action)
        except RequestError as error:
            hint = "; /clear forgets it" if isinstance(error, ContextLengthError) else ""
            click.echo(f"error: {error}{hint}", err=True)


class Conversation:
    """The messages so far, and the settings of the answers to come."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._system = system
        self._messages: list[dict[str, str]] = []

    def do(self, action: Say | Show | Set | Clear | None) -> None:
        """Carry out one line; a RequestError leaves the conversation as it was."""
        match action:
            case Say(text):
                self._answer(text)
            case Show(text):
                click.echo(text)
            case Set("", _):
                click.echo(self._settings())
            case Set(key, value):
                self._set(key, value)
            case Clear():
                self._messages.clear()
                click.echo("the conversation is forgotten")

    def _answer(self, text: str) -> None:
        asked = [*self._messages, {"role": "user", "content": text}]
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        stream = self._llm.stream_chat([*system, *asked], self._params)
        answer, times = "", []
        started = time.perf_counter()
        try:
            with contextlib.closing(stream):  # frees the request's place in the engine
                for output in stream:
                    times += [time.perf_counter()] * len(output.outputs[0].token_ids)
                    answer += output.outputs[0].text
                    say(output.outputs[0].text)
        except KeyboardInterrupt:
            click.echo(" [stopped]", nl=False)
        click.echo(f"\n[{speed(started, times)}]")
        self._messages = [*asked, {"role": "assistant", "content": answer}]

    def _set(self, key: str, value: str) -> None:
        if key == "system":
            self._system = value or None
        else:
            self._params = change(self._params, key, value)
        click.echo(f"{key} = {value}")

    def _settings(self) -> str:
        values = dataclasses.asdict(self._params)
        shown = {"system": self._system, **{name: values[name] for name in settable()}}
        return "\n".join(f"{name} = {value!r}" for name, value in shown.items())


def speed(started: float, times: list[float]) -> str:
    """What an answer took: tokens, seconds to the first, tokens a second after it.

    ``times`` are the moments at which each token came.
    """
    if not times:
        return "no tokens"
    said = f"{len(times)} tokens, first after {times[0] - started:.2f} s"
    if len(times) < 2 or times[-1] == times[0]:
        return said
    return f"{said}, {(len(times) - 1) / (times[-1] - times[0]):.1f} tokens/s"
