"""The models that are served, by the names that clients use."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn, TypeVar

from enginewright.runtime import AsyncLLM
from enginewright.runtime.errors import EnginewrightError, OverloadedError
from enginewright.server.errors import FieldError, ModelNotFoundError
from enginewright.server.options import ModelOptions
from enginewright.server.reasoning.formats import choose_reasoning_parser, make_reasoning_parser
from enginewright.server.tools.formats import choose_tool_parser, make_tool_parser

T = TypeVar("T")

_NO_LIMIT = 2**31
_PREPARING_THREADS = 4


@dataclass
class ServedModel:
    """One engine under its names; the first is the one in answers.

    ``capacity``: outputs that may run or wait. ``tool_parser``, ``reasoning_parser``: names of
    formats, None where there is none.
    """

    names: tuple[str, ...]
    engine: AsyncLLM
    options: ModelOptions
    capacity: int
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    load_seconds: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))
    unfinished: int = 0
    preparing: int = 0
    rejected: int = 0
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_PREPARING_THREADS, "enginewright-requests")
    )

    @property
    def name(self) -> str:
        """The one in answers."""
        return self.names[0]

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.engine.is_running

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """The texts of the tokenizer's special tokens."""
        tokenizer = self.engine.get_tokenizer()
        surfaces = map(tokenizer.surface, tokenizer.special_ids)
        return frozenset(text for text in surfaces if text is not None)

    @cached_property
    def fingerprint(self) -> str:
        """Of the engine that answers; another one may answer otherwise."""
        engine = next(e for e in self.engine.manifest.engines if e.plan == self.engine.plan)
        return f"fp_{engine.fingerprint.removeprefix('sha256:')[:12]}"

    @contextlib.contextmanager
    def admitted(self, outputs: int) -> Iterator[None]:
        """Have room for so many outputs; OverloadedError where too many run or wait.

        A request that is larger than all the room is taken when it comes alone.
        """
        if self.unfinished and self.unfinished + outputs > self.capacity:
            self._refuse(self.unfinished, "outputs are unfinished")
        self.unfinished += outputs
        try:
            yield
        finally:
            self.unfinished -= outputs

    async def prepare(self, work: Callable[[], T]) -> T:
        """Call it on a thread beside the loop: tokenizing, rendering.

        Raises OverloadedError where too many wait for one.
        """
        if self.preparing >= self.capacity:
            self._refuse(self.preparing, "requests are being read")
        self.preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self.preparing -= 1

    def _refuse(self, count: int, what: str) -> NoReturn:
        self.rejected += 1
        raise OverloadedError(
            f"{count} {what}, and this server takes {self.capacity} at a time; try again"
        )

    def close(self) -> None:
        """Fail what runs and free the engine."""
        self.engine.shutdown()
        self._threads.shutdown(wait=False)


class ServedModels:
    """All models of a server, in the order in which they were named."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = tuple(models)
        self._by_name: dict[str, ServedModel] = {}
        for model in models:
            for name in model.names:
                if name in self._by_name:
                    raise EnginewrightError(
                        f"two models are served as {name!r}: give them different names, as "
                        f"NAME=ARTIFACT or by served_model_name"
                    )
                self._by_name[name] = model

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    @property
    def names(self) -> list[tuple[str, ServedModel]]:
        """Every name that is listed, with its model."""
        return [(name, model) for model in self._models for name in model.names]

    def get(self, name: str | None) -> ServedModel:
        """The model of that name; without one, the only one there is."""
        if not name and len(self._models) == 1:
            return self._models[0]
        if not name:
            legal = ", ".join(name for name, _ in self.names)
            raise FieldError("model", f"model is missing, and several are served: {legal}")
        if name not in self._by_name:
            raise ModelNotFoundError(f"The model `{name:.200}` does not exist.")
        return self._by_name[name]

    def close(self) -> None:
        """Free every engine."""
        for model in self._models:
            model.close()


def open_models(options: Sequence[ModelOptions]) -> ServedModels:
    """Load every artifact; when one cannot be, those that were are closed."""
    opened: list[ServedModel] = []
    try:
        for each in options:
            opened.append(open_model(each))
        return ServedModels(opened)
    except BaseException:
        for model in opened:
            model.close()
        raise


def open_model(options: ModelOptions) -> ServedModel:
    """Load one artifact, and see from its template how its answers are read."""
    started = time.perf_counter()
    engine = AsyncLLM(options.model, max_requests=_NO_LIMIT, **options.engine_arguments())
    return serve_engine(engine, options, time.perf_counter() - started)


def serve_engine(engine: AsyncLLM, options: ModelOptions, load_seconds: float = 0.0) -> ServedModel:
    """The model of an engine that is open."""
    template = engine.requests.templates.source
    names = tuple(dict.fromkeys(options.served_model_name)) or (engine.manifest.name,)
    return ServedModel(
        names,
        engine,
        options,
        engine.max_batch + options.max_num_queued_reqs,
        _parser(options.tool_call_parser, choose_tool_parser, make_tool_parser, template),
        _parser(options.reasoning_parser, choose_reasoning_parser, make_reasoning_parser, template),
        load_seconds,
    )


def _parser(
    given: str | None,
    choose: Callable[[str | None], str | None],
    make: Callable[[str], object],
    template: str | None,
) -> str | None:
    """The name of a format; one that does not exist is refused now."""
    if given is None:
        return choose(template)
    if given == "none":
        return None
    make(given)
    return given
