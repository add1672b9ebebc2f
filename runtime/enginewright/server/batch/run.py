"""A batch on this machine: its requests run together through the server's application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp

from enginewright.server.batch.lines import Line
from enginewright.server.batch.output import BatchOutput
from enginewright.server.errors import Failure
from enginewright.server.inprocess import post

Progress = Callable[[], object]


def run_lines(
    app: ASGIApp, lines: Iterable[Line], output: BatchOutput, together: int, progress: Progress
) -> None:
    """Answer the lines, ``together`` at a time; ``progress`` is called after each."""
    asyncio.run(_run(app, lines, output, together, progress))


async def _run(
    app: ASGIApp, lines: Iterable[Line], output: BatchOutput, together: int, progress: Progress
) -> None:
    waiting = iter(lines)

    async def work() -> None:
        for line in waiting:
            output.write(line, *await answer(app, line))
            progress()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(together):
            tasks.create_task(work())


async def answer(app: ASGIApp, line: Line) -> tuple[int, object]:
    """The status and the body of a line's answer."""
    if line.problem is not None:
        return 400, Failure(400, line.problem).body()
    return await post(app, line.url, line.body)
