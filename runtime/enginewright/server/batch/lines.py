"""The lines of a batch: what each asks, or why it cannot be asked.

A line is an object of OpenAI's batch format: ``custom_id``, ``method`` (POST), ``url``, ``body``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginewright.runtime.errors import EnginewrightError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@dataclass(frozen=True)
class Line:
    """One request. ``number`` counts from 1; ``problem`` says why it is not sent."""

    number: int
    custom_id: str | None
    url: str = ""
    body: bytes = b""
    problem: str | None = None

    @property
    def id(self) -> str:
        """Of its answer: the same whenever the file is run."""
        return f"batch_req_{self.number}"


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that is not empty; one that is wrong comes as a line with a problem."""
    seen: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    line = read_line(number, text)
                    yield _once(line, seen)
    except OSError as error:
        raise EnginewrightError(f"{path}: cannot be read ({error.strerror})") from error


def read_line(number: int, text: bytes) -> Line:
    """One line of the file."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Line(number, None, problem=f"the line is not JSON: {error}")
    if not isinstance(data, dict):
        return Line(number, None, problem="the line is not a JSON object")
    custom_id = data.get("custom_id")
    if not isinstance(custom_id, str):
        return Line(number, None, problem=f"custom_id={custom_id!r:.80}: it must be text")
    if not _is_unicode(custom_id):
        # Answered without its name, which UTF-8 cannot hold: the answer would be to another one.
        told = f"custom_id={custom_id!r:.80} holds half of a surrogate pair: it is no text"
        return Line(number, None, problem=told)
    problem = _problem(data)
    if problem is not None:
        return Line(number, custom_id, problem=problem)
    return Line(number, custom_id, data["url"], json.dumps(data["body"]).encode())


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _problem(data: dict[str, Any]) -> str | None:
    url, body = data.get("url"), data.get("body")
    if data.get("method", "POST") != "POST":
        return f"method={data['method']!r:.80}: it must be 'POST'"
    if url not in URLS:
        return f"url={url!r:.80}: there are {', '.join(URLS)}"
    if not isinstance(body, dict):
        return f"body={body!r:.80}: it must be an object"
    if body.get("stream"):
        return "body.stream: the answers of a batch are not streamed; leave it out"
    return None


def _once(line: Line, seen: dict[str, int]) -> Line:
    if line.custom_id is None:
        return line
    first = seen.setdefault(line.custom_id, line.number)
    if first == line.number:
        return line
    problem = f"custom_id={line.custom_id!r:.80} is that of line {first}: each must be another"
    return Line(line.number, line.custom_id, problem=problem)
