"""``enginewright run``: continue a prompt, or answer it; text as it comes, or JSON at the end."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginewright.cli.engine_options import (
    ArtifactName,
    engine_options,
    policy_option,
    speculation_option,
    template_option,
)
from enginewright.cli.sampling import effective, sampling_options
from enginewright.cli.text import say

if TYPE_CHECKING:
    from enginewright.runtime import LLM, Policy, RequestOutput, SamplingParams

MAX_TOKENS = 256


@click.command(
    epilog=f"Sampling: the model's own defaults, changed by the options given here; at most "
    f"{MAX_TOKENS} tokens where neither says."
)
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--chat", is_flag=True, help="Answer the prompt through the model's chat template.")
@click.option("--system", metavar="TEXT", help="With --chat: a system message before the prompt.")
@template_option
@sampling_options
@engine_options
@policy_option
@speculation_option
@click.option(
    "--explain", is_flag=True, help="Say what set each sampling parameter: on stderr, or in --json."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(
    artifact: Path,
    prompt: str | None,
    chat: bool,
    system: str | None,
    chat_template: str | None,
    threads: int | None,
    allow_native_code: bool | None,
    policy: Policy | None,
    speculative_config: Mapping[str, Any] | None,
    explain: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue PROMPT with ARTIFACT; without a prompt, or for "-", read it from stdin.

    ARTIFACT may also be what one was built from on this machine: a checkpoint, a GGUF file, or a
    hub's owner/name.
    """
    if system is not None and not chat:
        raise click.UsageError("--system needs --chat: only a chat template has a system message")
    if chat_template is not None and not chat:
        raise click.UsageError("--chat-template needs --chat: else the prompt is taken as it is")
    text = _text(prompt)
    from enginewright.runtime import LLM

    started = time.perf_counter()
    with LLM(
        artifact,
        threads=threads,
        allow_native_code=allow_native_code,
        policy=policy,
        chat_template=chat_template,
        speculative_config=speculative_config,
    ) as llm:
        load = time.perf_counter() - started
        found = effective(llm, options, MAX_TOKENS)
        explanation = llm.requests.explain(found.params, found.origins) if explain else None
        if explanation is not None and not as_json:
            click.echo(f"{explanation}\n", err=True)
        stream = _stream(llm, text, found.params, system, chat)
        answer = Answer.collect(stream, load, echo=not as_json)
    if as_json:
        data = answer.as_data(found.params)
        if explanation is not None:
            data["explanation"] = explanation.as_dict()
        click.echo(json.dumps(data, ensure_ascii=False, default=str))


def _text(prompt: str | None) -> str:
    """The prompt, or what is piped in without the newline that ends its last line."""
    try:
        if prompt in (None, "-"):
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        assert prompt is not None
        return prompt.encode("utf-8").decode("utf-8")  # bytes that are no text arrive as surrogates
    except UnicodeError as error:
        raise click.UsageError(f"the prompt is not UTF-8 text ({error})") from error


def _stream(
    llm: LLM, text: str, params: SamplingParams, system: str | None, chat: bool
) -> Iterator[RequestOutput]:
    if not chat:
        return llm.stream(text, params)
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return llm.stream_chat(messages, params)


@dataclasses.dataclass
class Answer:
    """A stream, put together. Times are seconds; ``first`` and ``total`` count from the prompt."""

    load: float
    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    prompt_token_ids: list[int] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    first: float = 0.0
    total: float = 0.0

    @classmethod
    def collect(cls, stream: Iterator[RequestOutput], load: float, *, echo: bool) -> Answer:
        """Run the stream to its end; ``echo`` writes its text to stdout as it comes."""
        answer, started = cls(load), time.perf_counter()
        for output in stream:
            answer.total = time.perf_counter() - started
            answer.first = answer.first or answer.total
            new = output.outputs[0]
            answer.text += new.text
            answer.token_ids += new.token_ids
            answer.prompt_token_ids = output.prompt_token_ids
            answer.finish_reason = new.finish_reason
            if echo:
                say(new.text)
        if echo:
            click.echo()
        return answer

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first one."""
        rest = len(self.token_ids) - 1
        return rest / (self.total - self.first) if rest > 0 and self.total > self.first else None

    def as_data(self, params: SamplingParams) -> dict[str, Any]:
        """Plain data for --json."""
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "prompt_token_ids": self.prompt_token_ids,
            "timings": {
                "load_seconds": self.load,
                "first_token_seconds": self.first,
                "total_seconds": self.total,
                "tokens_per_second": self.tokens_per_second,
            },
            "sampling_params": dataclasses.asdict(params),
        }
