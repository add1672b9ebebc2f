"""Requests on the core: all of a call to their ends, or one as it comes."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence

from enginewright.runtime.progress import UseTqdm, progress
from enginewright.runtime.requests.group import RequestGroup
from enginewright.runtime.requests.outputs import RequestOutput
from enginewright.runtime.sampling.kinds import RequestOutputKind
from enginewright.runtime.scheduling.core import EngineCore
from enginewright.runtime.scheduling.job import Job

logger = logging.getLogger(__name__)


def enqueue(core: EngineCore, jobs: Sequence[Job]) -> None:
    """Queue all of them, or none."""
    try:
        for job in jobs:
            core.add(job)
    except BaseException:  # an interrupt, too, must leave nothing behind
        core.abort(jobs)
        raise


def finish(
    core: EngineCore, groups: Sequence[RequestGroup], use_tqdm: UseTqdm
) -> list[RequestOutput]:
    """Run queued requests to their ends; outputs in their order. Errors: see ``tell_errors``."""
    complete(core, groups, use_tqdm)
    tell_errors(groups)
    return [group.output() for group in groups]


def complete(core: EngineCore, jobs: Sequence[Job], use_tqdm: UseTqdm = False) -> None:
    """Run queued jobs to their ends. What ends this early, an interrupt say, aborts them."""
    waiting = {job for job in jobs if not job.finished}
    try:
        with progress(len(jobs), use_tqdm) as advance:
            advance(len(jobs) - len(waiting))
            while waiting and core.busy:
                ended = {job for job in core.step() if job.finished} & waiting
                waiting -= ended
                if ended:
                    advance(len(ended))
    finally:
        core.abort(waiting)


def tell_errors(jobs: Sequence[Job], kind: str = "request") -> None:
    """When all failed, raise the first one's error; else log those of the jobs that have one."""
    errors = [job.error for job in jobs if job.error is not None]
    if errors and all(job.failed for job in jobs):
        raise errors[0]
    for error in errors:
        logger.error("a %s failed: %s", kind, error)


def stream(core: EngineCore, group: RequestGroup) -> Generator[RequestOutput]:
    """Yield what is new after each step. Leaving early aborts the request; an error is raised."""
    core.add(group)
    try:
        while not group.failed:
            news = group.news(RequestOutputKind.DELTA)
            if news is not None:
                yield news
            elif group.finished:
                break
            else:
                core.step()
        if group.error is not None:
            raise group.error
    finally:
        core.abort([group])
