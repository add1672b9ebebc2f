"""Completions: the request becomes a call, its outputs an answer or the chunks of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from enginewright.runtime import CompletionOutput, RequestOutput
from enginewright.runtime.requests.arguments import Tokenization
from enginewright.server.access_log import record_of
from enginewright.server.context import Context
from enginewright.server.errors import FieldError
from enginewright.server.protocol.common import new_id
from enginewright.server.protocol.completions import CompletionRequest
from enginewright.server.registry import ServedModel
from enginewright.server.serving.call import Call, Counts
from enginewright.server.serving.chunks import Chunks
from enginewright.server.serving.logprobs import (
    completion_logprobs,
    prompt_logprobs,
    spelling,
)
from enginewright.server.serving.prompts import Reading, prompt_text, read_prompts
from enginewright.server.serving.sampling import (
    Params,
    beam_params,
    check_request,
    sampling_params,
    tokens_to_make,
    top_of,
)
from enginewright.server.serving.structured import structured_outputs
from enginewright.server.serving.unsupported import check_supported
from enginewright.server.serving.usage import UsageWanted, usage_of
from enginewright.server.sse import DONE
from enginewright.server.wire import to_json

KIND = "text_completion"
_NOT_ENDED = '"logprobs":null,"finish_reason":null,"stop_reason":null'


async def read_completion(
    request: CompletionRequest, raw: Request, context: Context
) -> tuple[Call, Echo]:
    """Everything that can be wrong is found here; nothing has run yet."""
    model = context.models.get(request.model)
    check_supported(request)
    check_request(request, context.options.max_n)
    _check(request)
    max_tokens = _max_tokens(request, model)
    asked = "max_tokens" if "max_tokens" in request.model_fields_set else None
    cut = {"truncate_prompt_tokens": request.truncate_prompt_tokens}
    special = {"add_special_tokens": request.add_special_tokens}
    reading = Reading(Tokenization.of(cut | special), max_tokens, asked)
    params = _params(request, model, max_tokens)
    most = context.options.max_prompts
    prompts = await model.prepare(lambda: read_prompts(model, request.prompt, reading, most))
    _check_outputs(len(prompts) * request.outputs, max(most, model.capacity))
    record = record_of(raw)
    decode = model.engine.get_tokenizer().decode
    call = Call(
        context,
        model,
        record,
        new_id("cmpl-", request.request_id or record.id),
        prompts,
        params,
        request.outputs,
        top_of(request, request.logprobs),
        spelling(request.return_tokens_as_token_ids, lambda token: decode([token], False)),
        UsageWanted.of(request.stream_options, context.options),
        bool(request.return_token_ids),
    )
    scored = request.prompt_logprobs is not None
    return call, Echo(bool(request.echo), only=request.max_tokens == 0, scored=scored)


@dataclass(frozen=True)
class Echo:
    """Whether the prompt is told before the output; ``only``: and no output after it.

    ``scored``: its log probabilities are told by themselves, whether it is or not.
    """

    wanted: bool
    only: bool
    scored: bool


async def complete(call: Call, echo: Echo) -> dict[str, Any]:
    """The answer as a whole."""
    outputs = await call.finish()
    choices = []
    for place, output in enumerate(outputs):
        part = _Part(call, echo, place)
        for each in output.outputs:
            index = place * call.outputs + each.index
            choices.append({"index": index, **part.choice(output, each)})
    details = call.usage.details
    return {**call.head(KIND), "choices": choices, "usage": usage_of(outputs, details)}


async def completion_chunks(call: Call, echo: Echo) -> AsyncGenerator[bytes]:
    """The events of the stream."""
    chunks, counts = Chunks(call.head(KIND)), Counts(call)
    parts = [_Part(call, echo, place) for place in range(len(call.prompts))]
    async with aclosing(call.run()) as outputs:
        async for place, output in outputs:
            counts.take(place, output)
            made = []
            for each in output.outputs:
                choice = parts[place].delta(output, each)
                if choice is not None:
                    index = place * call.outputs + each.index
                    told = {"usage": counts.of(place, each.index)} if call.usage.in_each else None
                    made.append(chunks.encoded(index, choice, told))
            if made:
                yield b"".join(made)
    yield (chunks.usage(counts.total()) if call.usage.at_end else b"") + DONE


class _Part:
    """One prompt's outputs, as choices; remembers how much of each was told."""

    def __init__(self, call: Call, echo: Echo, place: int) -> None:
        self._call, self._echo, self._prompt = call, echo, call.prompts[place]
        self._offsets: dict[int, int] = {}
        """How much of each was told, by the lengths of its tokens; only with log probabilities."""

    def delta(self, output: RequestOutput, made: CompletionOutput) -> str | None:
        """The fields of a choice in a stream, as JSON; None: nothing to tell."""
        call, plain = self._call, made.finish_reason is None and made.index in self._offsets
        if plain and call.top is None and not call.with_token_ids:
            return f'"text":{to_json(made.text)},{_NOT_ENDED}' if made.text else None
        choice = self.choice(output, made)
        tells = choice["text"] or choice["logprobs"] or made.finish_reason or call.with_token_ids
        return to_json(choice)[1:-1] if tells else None

    def choice(self, output: RequestOutput, made: CompletionOutput) -> dict[str, Any]:
        """A choice without its index: the whole of it, or what came since the last one."""
        call, first = self._call, made.index not in self._offsets
        offset = self._offsets.get(made.index, 0)
        text, ids = ("", []) if self._echo.only else (made.text, made.token_ids)
        positions = [] if self._echo.only else list(made.logprobs or ())
        if first and self._echo.wanted:
            text = prompt_text(call.model, self._prompt) + text
            ids = [*self._prompt.ids, *ids]
            positions = [*(output.prompt_logprobs or ()), *positions]
        found: dict[str, Any] = {"text": text, "logprobs": None}
        if call.top is not None:
            scored = completion_logprobs(ids, positions, call.top, offset, call.spell)
            found["logprobs"] = scored
            offset += sum(map(len, scored["tokens"]))
        self._offsets[made.index] = offset
        found["finish_reason"] = "length" if self._echo.only else made.finish_reason
        found["stop_reason"] = None if self._echo.only else made.stop_reason
        if call.with_token_ids:
            found["token_ids"] = ids
            if first:
                found["prompt_token_ids"] = self._prompt.ids
        if first and self._echo.scored:
            found["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
        return found


def _check(request: CompletionRequest) -> None:
    if request.best_of not in (None, request.outputs):
        raise FieldError("best_of", f"best_of={request.best_of} is unsupported: leave it out")
    if request.max_tokens == 0 and not request.echo:
        raise FieldError("max_tokens", "max_tokens=0 needs echo: else there is nothing to answer")
    if request.use_beam_search and request.echo and request.logprobs is not None:
        raise FieldError("logprobs", "echo with logprobs and use_beam_search is not supported")
    if request.logprobs is not None and request.logprobs < -1:
        raise FieldError("logprobs", f"logprobs={request.logprobs} is not legal: at least -1")


def _check_outputs(asked: int, most: int) -> None:
    if asked > most:
        raise FieldError(
            "n",
            f"the request asks for {asked} outputs in all, and this server takes {most} of one "
            f"request; send several smaller ones",
        )


def _max_tokens(request: CompletionRequest, model: ServedModel) -> int:
    asked = 16 if request.max_tokens is None else request.max_tokens
    found = tokens_to_make(asked, model.engine.requests.defaults)
    assert found is not None
    return max(found, 1) if request.echo else found


def _params(request: CompletionRequest, model: ServedModel, max_tokens: int) -> Params:
    if request.use_beam_search:
        return beam_params(request, max_tokens, structured_outputs(request))
    scored = request.prompt_logprobs
    if scored is None and request.echo:
        scored = request.logprobs
    return sampling_params(
        request,
        model.engine.requests.defaults,
        max_tokens=max_tokens,
        logprobs=request.logprobs,
        prompt_logprobs=scored,
    )
