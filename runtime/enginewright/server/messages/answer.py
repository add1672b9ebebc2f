"""A chat answer as a message of Anthropic's API, whole or as the events of its stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from enginewright.server.parts import Change, Closed, Grew, Opened, Parts
from enginewright.server.serving.pieces import Piece

JSON = dict[str, Any]

_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


class MessageBuilder:
    """One answer: see named_events.Builder.

    ``name`` is the answer's id, ``message`` the answer as it stands.
    """

    def __init__(self, name: str, model: str, prompt_tokens: int) -> None:
        self._parts = Parts()
        self.message: JSON = {
            "id": name,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
        }

    def begin(self) -> Iterator[JSON]:
        yield {"type": "message_start", "message": {**self.message, "content": []}}

    def feed(self, piece: Piece) -> Iterator[JSON]:
        for change in self._parts.feed(piece):
            yield from self._tell(change)
        reason, stop = piece.finish_reason, piece.stop_reason
        if reason == "stop" and isinstance(stop, str):
            self.message |= {"stop_reason": "stop_sequence", "stop_sequence": stop}
        elif reason is not None:
            self.message["stop_reason"] = {"length": "max_tokens"}.get(reason, "end_turn")

    def count(self, usage: Mapping[str, Any]) -> None:
        """Take in the chat answer's usage; what was cached is told apart, as Anthropic does."""
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        self.message["usage"] = {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        }

    def finish(self) -> Iterator[JSON]:
        for change in self._parts.finish():
            yield from self._tell(change)
        called = any(block["type"] == "tool_use" for block in self.message["content"])
        if called and self.message["stop_reason"] == "end_turn":
            self.message["stop_reason"] = "tool_use"
        delta = {name: self.message[name] for name in ("stop_reason", "stop_sequence")}
        yield {"type": "message_delta", "delta": delta, "usage": self.message["usage"]}
        yield {"type": "message_stop"}

    def _tell(self, change: Change) -> Iterator[JSON]:
        if isinstance(change, Opened):
            block = _block(change, "")
            yield {"type": "content_block_start", "index": change.index, "content_block": block}
        elif isinstance(change, Grew):
            kind, field = _DELTAS[change.kind]
            delta = {"type": kind, field: change.text}
            yield {"type": "content_block_delta", "index": change.index, "delta": delta}
        else:
            self.message["content"].append(_block(change, change.text))
            yield {"type": "content_block_stop", "index": change.index}


def _block(part: Opened | Closed, text: str) -> JSON:
    if part.kind == "text":
        return {"type": "text", "text": text, "citations": None}
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": _input(text)}


def _input(arguments: str) -> JSON:
    """The arguments as an object; of a call that was cut short, what there is as text."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return {"_incomplete": arguments}
    return value if isinstance(value, dict) else {"_incomplete": arguments}
