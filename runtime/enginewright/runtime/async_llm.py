"""AsyncLLM: a loaded artifact for asyncio: many tasks, one engine, outputs as they come."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from enginewright.runtime.beam_search.job import BeamJob
from enginewright.runtime.beam_search.outputs import BeamSearchOutput
from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.beam_search.results import beam_output
from enginewright.runtime.engine_thread import EngineThread
from enginewright.runtime.errors import (
    ArgumentError,
    EnginewrightError,
    OverloadedError,
    RequestError,
)
from enginewright.runtime.llm import LLM
from enginewright.runtime.loading import LoadedModel
from enginewright.runtime.requests.arguments import ChatOptions, Tokenization, read_call
from enginewright.runtime.requests.group import RequestGroup
from enginewright.runtime.requests.outputs import RequestOutput
from enginewright.runtime.requests.prompts import Conversation, Prompt
from enginewright.runtime.sampling.checks import whole
from enginewright.runtime.sampling.kinds import RequestOutputKind
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.scheduling.job import Job
from enginewright.runtime.stats import EngineStats

T = TypeVar("T")
J = TypeVar("J", RequestGroup, BeamJob)

MAX_REQUESTS = 1024
_PREPARING_THREADS = 4


class AsyncLLM(LoadedModel):
    """Runs requests of many tasks together, on a thread of its own that alone steps the engine.

    ``model`` and ``options`` are LLM's; or ``model`` is an LLM, which cannot be used by itself
    afterwards. ``max_requests``: unfinished ones at a time; one more raises OverloadedError.
    Templates are rendered and prompts tokenized on threads beside the caller's loop. Use it in
    ``async with``, or call ``shutdown``.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LLM,
        *,
        max_requests: int = MAX_REQUESTS,
        **options: Any,
    ) -> None:
        hint = f"left out for {MAX_REQUESTS}"
        most = whole("max_requests", max_requests, 1, otherwise=hint, error=EnginewrightError)
        if isinstance(model, LLM) and options:
            raise ArgumentError(f"{next(iter(options))} goes to the LLM, which is already loaded")
        llm = model if isinstance(model, LLM) else LLM(model, **options)
        loaded = llm.hand_over("an AsyncLLM")
        super().__init__(loaded)
        self._max_requests = most
        self._requests: dict[str, _Request] = {}
        self._names = itertools.count()
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, "enginewright-prepare")
        self._engine = EngineThread(loaded.core)
        # At the interpreter's end, too: a thread inside the engine would outlive what it uses.
        self._finalizer = weakref.finalize(self, self._engine.close)

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: None = None,
        priority: int = 0,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput]:
        """Continue one prompt; ``output_kind`` of the parameters says what each output holds.

        To a reader who is slower than the engine, outputs come joined. Closing the generator, or
        cancelling the task that waits for it, aborts the request. A request whose outputs all fail
        raises the error. ``request_id`` is for ``abort``; it must not be that of another one.
        """
        how = read_call(
            lora_request=lora_request, priority=priority, tokenization_kwargs=tokenization_kwargs
        )
        return self._generate(request_id, lambda: prompt, sampling_params, how)

    def chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: None = None,
        priority: int = 0,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **template: Unpack[ChatOptions],
    ) -> AsyncGenerator[RequestOutput]:
        """Answer one conversation, as ``generate`` does; ``template``: as in ``LLM.chat``."""
        how = read_call(
            lora_request=lora_request, priority=priority, tokenization_kwargs=tokenization_kwargs
        )
        render = self.requests.renderer(how, **template)
        return self._generate(request_id, lambda: render(messages), sampling_params, how)

    async def beam_search(
        self, prompt: Prompt, params: BeamSearchParams, request_id: str | None = None
    ) -> BeamSearchOutput:
        """The best continuations of one prompt, see ``LLM.beam_search``."""

        def told(job: BeamJob, pending: BeamSearchOutput | None) -> BeamSearchOutput | None:
            return beam_output(job) if job.finished else None

        name, making = self._name(request_id), self.requests.beam_jobs()
        rows = making.take_rows(params)
        found = self._follow(name, lambda: making.make(prompt, params, rows), told)
        return [output async for output in found][-1]

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests before the engine's next step, as they are; ended ones are left alone.

        Their last output has finish_reason "abort".
        """
        for each in _as_names(request_id):
            request = self._requests.get(each)
            if request is not None:
                request.aborted = True
                if request.job is not None:
                    self._engine.abort(request.job)

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return self._engine.running

    @property
    def errored(self) -> bool:
        """Whether the engine failed; then no request runs any more."""
        return self._engine.failed

    async def reset_prefix_cache(self) -> bool:
        """Forget what ended requests have computed."""
        self._engine.reset_prefix_cache()
        return True

    async def stats(self) -> EngineStats:
        """How the engine stands, once its present step has ended."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[EngineStats] = loop.create_future()

        def take(stats: EngineStats) -> None:
            if not found.done():
                found.set_result(stats)

        def told(stats: EngineStats) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(take, stats)

        self._engine.tell_stats(told)
        return await found

    def shutdown(self) -> None:
        """Fail what runs and free the engine, after the step that is under way."""
        self._finalizer()
        self._preparing.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.shutdown)

    def _generate(
        self,
        request_id: str | None,
        prompt: Callable[[], Prompt],
        sampling_params: SamplingParams | None,
        how: Tokenization,
    ) -> AsyncGenerator[RequestOutput]:
        (params,) = self.requests.params_for(1, sampling_params)
        name = self._name(request_id)
        numbers = self.requests.take_numbers(params)
        return self._follow(
            name,
            lambda: self.requests.group(prompt(), params, how, numbers),
            _Teller(name, params.output_kind),
        )

    async def _follow(
        self, name: str, make: Callable[[], J], told: Callable[[J, T | None], T | None]
    ) -> AsyncGenerator[T]:
        """Make the job, run it, and yield what is told of it."""
        request = self._admit(name)
        try:
            loop = asyncio.get_running_loop()
            job = await loop.run_in_executor(self._preparing, make)
            mailbox = _Mailbox(loop, job, told)
            self._engine.submit(job, mailbox)
            request.job = job
            if request.aborted:
                self._engine.abort(job)
            ended = False
            while not ended:
                output, ended = await mailbox.take()
                if ended and job.failed and job.error is not None:
                    raise job.error
                yield output
        finally:
            del self._requests[name]
            if request.job is not None:
                self._engine.abort(request.job)

    def _admit(self, name: str) -> _Request:
        self._engine.check()
        if len(self._requests) >= self._max_requests:
            raise OverloadedError(
                f"{len(self._requests)} requests are unfinished, and this AsyncLLM takes "
                f"{self._max_requests} (max_requests); try again when some have ended"
            )
        if name in self._requests:
            raise RequestError(f"request_id={name!r:.80} is that of a request that is running")
        request = self._requests[name] = _Request()
        return request

    def _name(self, request_id: Any) -> str:
        if request_id is None:
            return f"request-{next(self._names)}"
        if not isinstance(request_id, str) or not request_id:
            raise RequestError(f"request_id={request_id!r:.80} is not legal: it must be text")
        return request_id


def _as_names(request_id: Any) -> list[str]:
    try:
        names = [request_id] if isinstance(request_id, str) else list(request_id)
        if all(isinstance(each, str) for each in names):
            return names
    except TypeError:  # nothing to iterate
        pass
    raise RequestError(
        f"request_id={request_id!r:.80} is not legal: it must be text, or a list of such"
    )


@dataclass
class _Request:
    """An unfinished request; the job is None while it is being made."""

    job: Job | None = None
    aborted: bool = False


class _Teller:
    """What one who follows a request is told after it moved, by the kind that was asked for."""

    def __init__(self, request_id: str, kind: RequestOutputKind) -> None:
        self._request_id = request_id
        self._kind = kind

    def __call__(self, group: RequestGroup, pending: RequestOutput | None) -> RequestOutput | None:
        """What is to be told now, with what was not yet picked up; None: nothing."""
        news = group.news(self._kind)
        if news is None:
            return pending
        news.request_id = self._request_id
        if pending is None or self._kind is not RequestOutputKind.DELTA:
            return news
        pending.add(news, aggregate=True)
        return pending


class _Mailbox(Generic[J, T]):
    """From the engine's thread to the task that follows one job. Holds one item at most."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, job: J, told: Callable[[J, T | None], T | None]
    ) -> None:
        self._loop = loop
        self._job: J = job
        self._told: Callable[[J, T | None], T | None] = told
        self._lock = threading.Lock()
        self._arrived = asyncio.Event()
        self._pending: T | None = None
        self._ended = False
        self._error: EnginewrightError | None = None

    def moved(self, job: Job) -> None:
        with self._lock:
            self._pending = self._told(self._job, self._pending)
            self._ended = self._job.finished
        self._ring()

    def failed(self, error: EnginewrightError) -> None:
        with self._lock:
            self._error = error
        self._ring()

    async def take(self) -> tuple[T, bool]:
        """What was told since the last call, and whether it is the last."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            with self._lock:
                if self._error is not None:
                    raise self._error
                item, self._pending = self._pending, None
                if item is not None:
                    return item, self._ended

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._arrived.set)
