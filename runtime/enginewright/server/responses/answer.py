"""A chat answer as a Responses answer, whole or as the events of its stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from enginewright.server.parts import Change, Closed, Grew, Opened, Parts
from enginewright.server.responses.request import ResponsesRequest
from enginewright.server.serving.call import Call
from enginewright.server.serving.pieces import Piece

JSON = dict[str, Any]

_PREFIX = {"reasoning": "rs", "text": "msg", "call": "fc"}
_DELTA = {
    "reasoning": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}


class ResponseBuilder:
    """One answer: see named_events.Builder.

    ``response`` is the answer as it stands.
    """

    def __init__(self, request: ResponsesRequest, call: Call) -> None:
        self._parts = Parts()
        self._ids: dict[int, str] = {}
        self._logprobs: list[Any] = []
        self._number = 0
        self.response = _started(request, call)

    def begin(self) -> Iterator[JSON]:
        yield self._event("response.created", response=self._snapshot())
        yield self._event("response.in_progress", response=self._snapshot())

    def feed(self, piece: Piece) -> Iterator[JSON]:
        for change in self._parts.feed(piece):
            yield from self._tell(change)
        if piece.finish_reason == "length":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}

    def count(self, usage: Mapping[str, Any]) -> None:
        """Take in the chat answer's usage."""
        into = usage.get("prompt_tokens_details") or {}
        out = usage.get("completion_tokens_details") or {}
        self.response["usage"] = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {
                "cached_tokens": into.get("cached_tokens") or 0,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": out.get("reasoning_tokens") or 0},
            "total_tokens": usage["total_tokens"],
        }

    def finish(self) -> Iterator[JSON]:
        for change in self._parts.finish():
            yield from self._tell(change)
        status = "incomplete" if self.response["incomplete_details"] else "completed"
        self.response |= {"status": status, "completed_at": int(time.time())}
        if status == "incomplete" and self.response["output"]:
            self.response["output"][-1]["status"] = status
        yield self._event(f"response.{status}", response=self._snapshot())

    def fail(self, message: str) -> Iterator[JSON]:
        """The stream ends by an error."""
        error = {"code": "server_error", "message": message}
        self.response |= {"status": "failed", "error": error}
        yield self._event("response.failed", response=self._snapshot())

    def _tell(self, change: Change) -> Iterator[JSON]:
        if isinstance(change, Opened):
            yield from self._opened(change)
        elif isinstance(change, Grew):
            more: JSON = {"delta": change.text}
            if change.kind == "text":
                self._logprobs += change.logprobs
                more["logprobs"] = list(change.logprobs)
            yield self._inside(f"{_DELTA[change.kind]}.delta", change, **more)
        else:
            yield from self._closed(change)

    def _opened(self, part: Opened) -> Iterator[JSON]:
        self._ids[part.index] = f"{_PREFIX[part.kind]}_{uuid.uuid4().hex}"
        self._logprobs = []
        item = self._item(part, "", "in_progress")
        yield self._event("response.output_item.added", output_index=part.index, item=item)
        if part.kind != "call":
            yield self._inside("response.content_part.added", part, part=self._content(part, ""))

    def _closed(self, part: Closed) -> Iterator[JSON]:
        if part.kind == "call":
            done: JSON = {"arguments": part.text, "name": part.name}
        elif part.kind == "text":
            done = {"text": part.text, "logprobs": self._logprobs}
        else:
            done = {"text": part.text}
        yield self._inside(f"{_DELTA[part.kind]}.done", part, **done)
        if part.kind != "call":
            content = self._content(part, part.text)
            yield self._inside("response.content_part.done", part, part=content)
        item = self._item(part, part.text, "completed")
        self.response["output"].append(item)
        yield self._event("response.output_item.done", output_index=part.index, item=item)

    def _item(self, part: Opened | Closed, text: str, status: str) -> JSON:
        item: JSON = {"id": self._ids[part.index], "status": status}
        if part.kind == "call":
            call = {"call_id": part.call_id, "name": part.name, "arguments": text}
            return {"type": "function_call", **item, **call}
        content = [self._content(part, text)] if isinstance(part, Closed) else []
        if part.kind == "reasoning":
            return {"type": "reasoning", **item, "summary": [], "content": content}
        return {"type": "message", **item, "role": "assistant", "content": content}

    def _content(self, part: Opened | Closed, text: str) -> JSON:
        if part.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        logprobs = list(self._logprobs)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _inside(self, kind: str, change: Change, /, **fields: Any) -> JSON:
        place = {"item_id": self._ids[change.index], "output_index": change.index}
        if change.kind != "call":
            place["content_index"] = 0
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> JSON:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _snapshot(self) -> JSON:
        return {**self.response, "output": list(self.response["output"])}


def _started(request: ResponsesRequest, call: Call) -> JSON:
    params = call.params
    return {
        "id": call.id,
        "object": "response",
        "created_at": call.created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": call.name,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": request.reasoning,
        "service_tier": "default",
        "store": False,
        "temperature": params.temperature,
        "text": request.text or {"format": {"type": "text"}},
        "tool_choice": request.tool_choice,
        "tools": [{"strict": None, "parameters": None, **tool} for tool in request.tools or []],
        "top_logprobs": request.top_logprobs,
        "top_p": getattr(params, "top_p", None),
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }
