"""Chat: the request becomes a call, its outputs pieces. What becomes of pieces is elsewhere.

`chat_answer.py` makes the answers and streams of /v1/chat/completions of them; other endpoints
that speak of conversations make theirs from the same pieces.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request

from enginewright.runtime import CompletionOutput, RequestOutput
from enginewright.runtime.requests.arguments import Tokenization
from enginewright.server.access_log import record_of
from enginewright.server.context import Context
from enginewright.server.errors import FieldError
from enginewright.server.protocol.chat import ChatRequest, NamedTool
from enginewright.server.protocol.common import new_id
from enginewright.server.reasoning.formats import (
    make_reasoning_parser,
    reasoning_needs_special_tokens,
)
from enginewright.server.registry import ServedModel
from enginewright.server.serving.call import Call
from enginewright.server.serving.conversations import template_messages, template_options
from enginewright.server.serving.logprobs import chat_logprobs, spelling
from enginewright.server.serving.pieces import OutputReader, Piece, whole
from enginewright.server.serving.prompts import Reading, ReadPrompt, read_conversation
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
from enginewright.server.serving.usage import UsageWanted
from enginewright.server.tools.forced import NamedParser, RequiredParser
from enginewright.server.tools.formats import make_tool_parser, tools_need_special_tokens
from enginewright.server.tools.parser import ToolParser


@dataclass(frozen=True)
class ChatCall:
    """A conversation about to be answered. ``echo``: the text that the answer repeats first."""

    call: Call
    request: ChatRequest
    role: str
    echo: str

    @property
    def prompt(self) -> ReadPrompt:
        """The rendered conversation."""
        return self.call.prompts[0]

    async def pieces(self) -> AsyncGenerator[tuple[RequestOutput, list[Piece]]]:
        """What comes, as it comes; an output may have nothing to tell."""
        readers = [self.reader(index) for index in range(self.call.outputs)]
        async with aclosing(self.call.run()) as outputs:
            async for _, output in outputs:
                read = (readers[each.index].read(each) for each in output.outputs)
                yield output, [piece for piece in read if piece is not None]

    async def finish(self) -> tuple[RequestOutput, list[Piece]]:
        """The whole of it, one piece for each output."""
        (output,) = await self.call.finish()
        return output, whole(output, self.reader)

    def reader(self, index: int) -> OutputReader:
        """What reads one of the outputs."""
        request = self.request
        return OutputReader(
            index,
            reasoning=self._reasoning_parser(),
            decode=self._decode,
            tools=_tool_parser(request, self.call.model),
            show_reasoning=request.include_reasoning is not False,
            parallel=request.parallel_tool_calls is not False,
            names_call=isinstance(request.tool_choice, NamedTool),
            logprobs=self._logprobs,
        )

    def _reasoning_parser(self) -> Any:
        """None where a form holds the output to something else from its first token."""
        name = self.call.model.reasoning_parser
        if name is None or self.call.params.structured_outputs is not None:
            return None
        return make_reasoning_parser(name, self.prompt.text or "")

    def _decode(self, token_ids: Sequence[int]) -> str:
        tokenizer = self.call.model.engine.get_tokenizer()
        return tokenizer.decode(token_ids, self.call.params.skip_special_tokens)

    def _logprobs(self, made: CompletionOutput) -> list[dict[str, Any]] | None:
        if self.call.top is None or made.logprobs is None:
            return None
        return chat_logprobs(made.token_ids, made.logprobs, self.call.top, self.call.spell)


async def read_chat(
    request: ChatRequest, raw: Request, context: Context, prefix: str = "chatcmpl-"
) -> ChatCall:
    """Everything that can be wrong is found here; nothing has run yet."""
    model = context.models.get(request.model)
    check_supported(request)
    check_request(request, context.options.max_n)
    _check_logprobs(request)
    tools = _tools(request, model)
    asked = _asked(request)
    max_tokens = tokens_to_make(getattr(request, asked or "", None), model.engine.requests.defaults)
    params = _params(request, model, max_tokens)
    prompt = await _read(request, model, context, max_tokens, asked, tools)
    if params is None:
        room = model.engine.max_context - len(prompt.ids)
        params = beam_params(request, max_tokens or room, structured_outputs(request))
    record = record_of(raw)
    decode = model.engine.get_tokenizer().decode
    call = Call(
        context,
        model,
        record,
        new_id(prefix, request.request_id or record.id),
        [prompt],
        params,
        request.outputs,
        top_of(request, (request.top_logprobs or 0) if request.logprobs else None),
        spelling(request.return_tokens_as_token_ids, lambda token: decode([token], False)),
        UsageWanted.of(request.stream_options, context.options),
        bool(request.return_token_ids),
    )
    last = request.messages[-1]
    role = model.options.response_role
    if request.add_generation_prompt is False:
        role = str(last.get("role", role))
    return ChatCall(call, request, role, _echo(request, role))


async def _read(
    request: ChatRequest,
    model: ServedModel,
    context: Context,
    max_tokens: int | None,
    asked: str | None,
    tools: list[dict[str, Any]],
) -> ReadPrompt:
    cut = {"truncate_prompt_tokens": request.truncate_prompt_tokens}
    special = {"add_special_tokens": bool(request.add_special_tokens)}
    reading = Reading(Tokenization.of(cut | special), max_tokens, asked)
    template = template_options(request, model, context, tools)
    messages = template_messages(request.messages, model.engine.requests.templates.source)
    return await model.prepare(partial(read_conversation, model, messages, reading, template))


def _params(request: ChatRequest, model: ServedModel, max_tokens: int | None) -> Params | None:
    """None for a beam search, whose bound may be the room that the prompt leaves."""
    if request.use_beam_search:
        return None
    changes = {"skip_special_tokens": False} if _needs_special_tokens(request, model) else {}
    return sampling_params(
        request,
        model.engine.requests.defaults,
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
        **changes,
    )


def _needs_special_tokens(request: ChatRequest, model: ServedModel) -> bool:
    """Whether a mark that is looked for in the text is a special token."""
    reasoning, tools, special = model.reasoning_parser, model.tool_parser, model.special_tokens
    if reasoning is not None and reasoning_needs_special_tokens(reasoning, special):
        return True
    reads = tools is not None and bool(request.tools) and request.tool_choice in (None, "auto")
    return reads and tools is not None and tools_need_special_tokens(tools, special)


def _asked(request: ChatRequest) -> str | None:
    """The field that bounds the output; the newer name goes first."""
    names = ("max_completion_tokens", "max_tokens")
    return next((name for name in names if getattr(request, name) is not None), None)


def _tools(request: ChatRequest, model: ServedModel) -> list[dict[str, Any]]:
    """Those that the template gets; with tool_choice "none" it gets none."""
    choice = request.tool_choice
    if request.tools is None:
        if choice not in (None, "none"):
            raise FieldError("tool_choice", "tool_choice needs tools: give some, or leave it out")
        return []
    if not request.tools:
        raise FieldError("tools", "tools is empty: give at least one, or leave it out")
    if choice in (None, "auto") and model.tool_parser is None:
        raise FieldError(
            "tool_choice",
            "tool_choice 'auto' needs to know how this model writes calls: start the server with "
            "tool_call_parser, or ask for tool_choice 'required', 'none' or a named function",
        )
    return [] if choice == "none" else request.tools_as_data()


def _tool_parser(request: ChatRequest, model: ServedModel) -> ToolParser | None:
    """What reads the calls of one output."""
    choice = request.tool_choice
    if not request.tools or choice == "none":
        return None
    if isinstance(choice, NamedTool):
        return NamedParser(choice.function.name)
    if choice == "required":
        return RequiredParser()
    assert model.tool_parser is not None
    return make_tool_parser(model.tool_parser, request.tools_as_data())


def _check_logprobs(request: ChatRequest) -> None:
    if not request.messages:
        raise FieldError("messages", "messages is empty: at least one message is needed")
    if request.top_logprobs is None:
        return
    if not request.logprobs:
        raise FieldError("top_logprobs", "top_logprobs needs logprobs: set it to true")
    if request.top_logprobs < -1:
        raise FieldError("top_logprobs", f"top_logprobs={request.top_logprobs}: at least -1")


def _echo(request: ChatRequest, role: str) -> str:
    last = request.messages[-1]
    content = last.get("content")
    told = request.echo and last.get("role") == role and isinstance(content, str)
    return str(content) if told else ""
