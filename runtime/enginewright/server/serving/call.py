"""A request that was read and found valid, about to run."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from enginewright.runtime import RequestOutput
from enginewright.server.access_log import Record, for_log
from enginewright.server.context import Context
from enginewright.server.registry import ServedModel
from enginewright.server.serving.following import follow
from enginewright.server.serving.logprobs import Spell
from enginewright.server.serving.merge import merged
from enginewright.server.serving.pieces import Piece
from enginewright.server.serving.prompts import ReadPrompt
from enginewright.server.serving.sampling import Params
from enginewright.server.serving.usage import UsageWanted, usage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """``outputs``: of each prompt.

    ``top``: log probabilities beside the token's own; None: none at all.
    """

    context: Context
    model: ServedModel
    record: Record
    id: str
    prompts: list[ReadPrompt]
    params: Params
    outputs: int
    top: int | None
    spell: Spell
    usage: UsageWanted
    with_token_ids: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        """Of the model in the answer: the first of its names, whichever the client called it by."""
        return self.model.name

    async def run(self) -> AsyncGenerator[tuple[int, RequestOutput]]:
        """Every output of every prompt, as they come, with the prompt's place."""
        metrics = self.context.metrics.of(self.model)
        if self.context.options.enable_log_requests:
            asked = [each.ids if each.text is None else each.text for each in self.prompts]
            logger.info("%s: %r with %r", for_log(self.id), asked, self.params)
        with self.model.admitted(len(self.prompts) * self.outputs):
            streams = [
                follow(self.model, metrics, self.record, prompt, self.params)
                for prompt in self.prompts
            ]
            async with aclosing(merged(streams)) as outputs:
                async for each in outputs:
                    yield each

    async def finish(self) -> list[RequestOutput]:
        """The whole output of each prompt."""
        found: dict[int, RequestOutput] = {}
        async with aclosing(self.run()) as outputs:
            async for place, output in outputs:
                found[place] = output
        return [found[place] for place in range(len(self.prompts))]

    def head(self, kind: str) -> dict[str, Any]:
        """What every answer and every chunk begins with."""
        found: dict[str, Any] = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.name,
        }
        if self.context.options.fingerprint == "engine":
            found["system_fingerprint"] = self.model.fingerprint
        return found


@dataclass
class Counts:
    """Tokens of a stream so far."""

    call: Call
    made: dict[tuple[int, int], int] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    thoughts: dict[tuple[int, int], int] = field(default_factory=dict)

    def take(self, place: int, output: RequestOutput, pieces: Iterable[Piece] = ()) -> None:
        """Count what came, and what was read of it."""
        for piece in pieces:
            if piece.reasoning_tokens is not None:
                self.thoughts[place, piece.index] = piece.reasoning_tokens
        self.cached[place] = output.num_cached_tokens or 0
        for each in output.outputs:
            key = place, each.index
            self.made[key] = self.made.get(key, 0) + len(each.token_ids)

    def of(self, place: int, index: int) -> dict[str, Any]:
        """Usage of one output."""
        prompt, thoughts = len(self.call.prompts[place].ids), self.thoughts.get((place, index))
        return usage(prompt, self.made[place, index], thoughts=thoughts)

    def total(self) -> dict[str, Any]:
        """Usage of all."""
        prompt = sum(len(each.ids) for each in self.call.prompts)
        cached = sum(self.cached.values()) if self.call.usage.details else None
        thoughts = sum(self.thoughts.values()) if self.thoughts else None
        return usage(prompt, sum(self.made.values()), cached, thoughts)
