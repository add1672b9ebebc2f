"""A batch over Ray Data: engines are actors, and this process alone writes the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from enginewright.server.batch.lines import Line
from enginewright.server.batch.output import BatchOutput
from enginewright.server.batch.run import answer
from enginewright.server.options import ServeOptions
from enginewright.server.wire import to_json

_BLOCK = 64


@dataclass(frozen=True)
class Resources:
    """How many engines, and what each needs of its machine."""

    replicas: int
    num_cpus: float
    num_gpus: float


class Worker:
    """One engine. Ray Data hands it blocks of lines; the lines of a block run together."""

    def __init__(self, options: ServeOptions) -> None:
        from enginewright.server.app import build_app
        from enginewright.server.registry import open_models

        self._app = build_app(options, open_models(options.models))
        self._loop = asyncio.new_event_loop()

    def __call__(self, block: Mapping[str, Any]) -> dict[str, list[str]]:
        asked = [_unpacked(text) for text in block["line"]]
        return {"answer": self._loop.run_until_complete(self._answers(asked))}

    async def _answers(self, lines: Sequence[Line]) -> list[str]:
        found = await asyncio.gather(*(answer(self._app, line) for line in lines))
        return [to_json([_packed(line), *each]) for line, each in zip(lines, found, strict=True)]


def run_over_ray(
    options: ServeOptions,
    lines: Sequence[Line],
    output: BatchOutput,
    progress: Callable[[], object],
    resources: Resources,
    address: str | None = None,
) -> None:
    """Answer the lines on a cluster: that at ``address``, or one of this machine alone."""
    if not lines:
        return
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False)
    try:
        for line, status, body in _answered(options, lines, resources):
            output.write(line, status, body)
            progress()
    finally:
        if ours:
            ray.shutdown()


def _answered(
    options: ServeOptions, lines: Sequence[Line], resources: Resources
) -> Iterator[tuple[Line, int, Any]]:
    blocks = max(1, min(len(lines), -(-len(lines) // _BLOCK)))
    asked = ray.data.from_items(
        [{"line": _packed(line)} for line in lines], override_num_blocks=blocks
    )
    answers = asked.map_batches(
        Worker,
        fn_constructor_args=(options,),
        batch_size=_BLOCK,
        compute=ray.data.ActorPoolStrategy(size=resources.replicas),
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus,
    )
    for row in answers.iter_rows():
        line, status, body = json.loads(row["answer"])
        yield _unpacked(line), status, body


def _packed(line: Line) -> str:
    """As text, which every format of Ray's blocks holds."""
    fields = vars(line) | {"body": line.body.decode()}
    return to_json(fields)


def _unpacked(text: str) -> Line:
    fields = json.loads(text)
    return Line(**fields | {"body": fields["body"].encode()})
