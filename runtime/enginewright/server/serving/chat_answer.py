"""The answer of /v1/chat/completions, and the events of its stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from enginewright.server.serving.call import Counts
from enginewright.server.serving.chat import ChatCall
from enginewright.server.serving.chunks import Chunks
from enginewright.server.serving.logprobs import prompt_logprobs
from enginewright.server.serving.pieces import Piece, reasoning_tokens
from enginewright.server.serving.usage import usage_of
from enginewright.server.sse import DONE
from enginewright.server.tools.parser import Delta, ToolCallDelta, collect
from enginewright.server.wire import to_json

KIND = "chat.completion"


async def answer_chat(chat: ChatCall) -> dict[str, Any]:
    """The answer as a whole."""
    output, pieces = await chat.finish()
    answer = {
        **chat.call.head(KIND),
        "choices": [_choice(chat, piece) for piece in pieces],
        "usage": usage_of([output], chat.call.usage.details, reasoning_tokens(pieces)),
    }
    if output.prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
    if chat.call.with_token_ids:
        answer["prompt_token_ids"] = chat.prompt.ids
    return answer


async def chat_chunks(chat: ChatCall) -> AsyncGenerator[bytes]:
    """The events of the stream: the role first, then what each output says."""
    call = chat.call
    chunks, counts, begun = Chunks(call.head(f"{KIND}.chunk")), Counts(call), False
    async with aclosing(chat.pieces()) as outputs:
        async for output, pieces in outputs:
            counts.take(0, output, pieces)
            made = []
            if not begun:
                begun = True
                made = [_opening(chat, chunks, index) for index in range(call.outputs)]
            for piece in pieces:
                tail = {"usage": counts.of(0, piece.index)} if call.usage.in_each else None
                made.append(chunks.encoded(piece.index, _delta(chat, piece), tail))
            if made:
                yield b"".join(made)
    yield (chunks.usage(counts.total()) if call.usage.at_end else b"") + DONE


def _opening(chat: ChatCall, chunks: Chunks, index: int) -> bytes:
    """The event with the role, and the one with what is echoed."""
    beside = {"logprobs": None, "finish_reason": None}
    tail: dict[str, Any] = {}
    if chat.call.usage.in_each:
        tail["usage"] = {**Counts(chat.call).total()}
    if chat.call.with_token_ids:
        tail["prompt_token_ids"] = chat.prompt.ids
    opening = {"delta": {"role": chat.role, "content": ""}, **beside}
    made = chunks.choice(index, opening, tail)
    if chat.echo:
        made += chunks.choice(index, {"delta": {"content": chat.echo}, **beside})
    return made


def _delta(chat: ChatCall, piece: Piece) -> str:
    """The fields of a choice, as JSON."""
    if not (piece.reasoning or piece.calls or piece.finish_reason or piece.logprobs):
        told = f'"delta":{{"content":{to_json(piece.content)}}},"logprobs":null'
        told += ',"finish_reason":null'
    else:
        choice: dict[str, Any] = {
            "delta": delta_of(piece),
            "logprobs": _logprobs(piece),
            "finish_reason": piece.finish_reason,
        }
        if piece.finish_reason is not None:
            choice["stop_reason"] = piece.stop_reason
        told = to_json(choice)[1:-1]
    if chat.call.with_token_ids:
        told += f',"token_ids":{to_json(piece.token_ids)}'
    return told


def delta_of(piece: Piece) -> dict[str, Any]:
    """What came, as a delta of a streamed message."""
    delta: dict[str, Any] = {}
    if piece.reasoning:
        delta["reasoning"] = delta["reasoning_content"] = piece.reasoning
    if piece.content:
        delta["content"] = piece.content
    if piece.calls:
        delta["tool_calls"] = [_call_delta(call) for call in piece.calls]
    return delta


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def message_of(chat: ChatCall, piece: Piece) -> dict[str, Any]:
    """A whole output, as a message."""
    _, calls = collect([Delta("", piece.calls)])
    content = chat.echo + piece.content
    message: dict[str, Any] = {
        "role": chat.role,
        "content": content if content or not (calls or piece.reasoning) else None,
        "refusal": None,
    }
    if piece.reasoning:
        message["reasoning"] = message["reasoning_content"] = piece.reasoning
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    return message


def _choice(chat: ChatCall, piece: Piece) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": piece.index,
        "message": message_of(chat, piece),
        "logprobs": _logprobs(piece),
        "finish_reason": piece.finish_reason,
        "stop_reason": piece.stop_reason,
    }
    if chat.call.with_token_ids:
        choice["token_ids"] = piece.token_ids
    return choice


def _logprobs(piece: Piece) -> dict[str, Sequence[Any]] | None:
    return None if piece.logprobs is None else {"content": piece.logprobs}
