"""Golden conversations, and what two chat templates make of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.templates import Templates

Messages = Sequence[Mapping[str, Any]]

_SYSTEM = {"role": "system", "content": "You answer in one sentence."}
_QUESTION = {"role": "user", "content": "What is the capital of France?"}
_ANSWER = {"role": "assistant", "content": "The capital of France is Paris."}
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}},
            "required": ["town"],
        },
    },
}

CONVERSATIONS: Mapping[str, tuple[Messages, Mapping[str, Any]]] = {
    "a question": ([_QUESTION], {}),
    "a question, to be trained on": ([_QUESTION, _ANSWER], {"add_generation_prompt": False}),
    "a system message": ([_SYSTEM, _QUESTION], {}),
    "three turns": (
        [_SYSTEM, _QUESTION, _ANSWER, {"role": "user", "content": "And of Spain?"}],
        {},
    ),
    "space around the text": ([{"role": "user", "content": "  \n indented\n\n"}], {}),
    "other scripts": ([{"role": "user", "content": "Ça va? 你好 🙂 <|im_end|>"}], {}),
    "an answer to go on with": (
        [_QUESTION, {"role": "assistant", "content": "The capital"}],
        {"add_generation_prompt": False, "continue_final_message": True},
    ),
    "a tool": ([_QUESTION], {"tools": [_TOOL]}),
}
"""Messages and the arguments of a rendering; together they reach the branches of most templates."""


@dataclass(frozen=True)
class Rendering:
    """A conversation that the two templates write in different ways."""

    conversation: str
    a: str
    b: str

    def lines(self) -> list[str]:
        """Only the lines that differ, marked - and +; control characters are written out."""
        told = difflib.unified_diff(_written(self.a), _written(self.b), lineterm="", n=0)
        return [line for line in told if not line.startswith(("---", "+++", "@@"))]


def _written(text: str) -> list[str]:
    return [repr(line)[1:-1] for line in text.splitlines(keepends=True)]


def renderings(a: Artifact, b: Artifact) -> list[Rendering]:
    """The golden conversations that come out differently; a refusal counts by its message."""
    ours, theirs = Templates(a), Templates(b)
    found = []
    for name, (messages, arguments) in CONVERSATIONS.items():
        made = [_rendered(each, messages, arguments) for each in (ours, theirs)]
        if made[0] != made[1]:
            found.append(Rendering(name, *made))
    return found


def _rendered(templates: Templates, messages: Messages, arguments: Mapping[str, Any]) -> str:
    try:
        return templates.get().render(messages, **arguments)
    except RequestError as error:
        return f"refused: {error}"
