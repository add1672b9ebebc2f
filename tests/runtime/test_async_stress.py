"""A thousand requests at once, many of them ended early at any stage: nothing leaks or waits."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from enginewright.runtime import (
    LLM,
    AsyncLLM,
    CompletionOutput,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
)
from enginewright.runtime.kv_cache.blocks import BlockCache
from enginewright.runtime.scheduling.core import EngineCore
from enginewright.runtime.speculation.governor import Governor
from enginewright.runtime.speculation.ngram import NgramProposer

T = TypeVar("T")
Answers = dict[int, list[CompletionOutput]]

REQUESTS = 1000
KINDS = list(RequestOutputKind)
AFTER = SamplingParams(
    temperature=0, max_tokens=3, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
)
SECONDS = 300
"""Until a run counts as a deadlock; it takes a few."""

NGRAMS = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1}


def _request(number: int) -> tuple[list[int], SamplingParams]:
    """Prompts of which many begin alike; greedy or seeded, so that each has one right answer."""
    draw = random.Random(number)
    shared = [5 + at % 200 for at in range(draw.choice((0, 16, 40)))]
    prompt = [*shared, *draw.choices(range(5, 250), k=draw.randrange(1, 30))]
    temperature, n = draw.choice(((0, 1), (0, 1), (1.0, 1), (1.0, 2)))
    params = SamplingParams(
        temperature=temperature,
        seed=number,
        n=n,
        max_tokens=draw.randrange(1, 24),
        ignore_eos=True,
        output_kind=KINDS[number % 3],
    )
    return prompt, params


REQUESTED = [_request(number) for number in range(REQUESTS)]
CHECKED = range(0, REQUESTS, 5)


async def _follow(
    engine: AsyncLLM, number: int, prompt: list[int], params: SamplingParams
) -> list[RequestOutput]:
    """The outputs of a request that three times in five is let finish, else is ended early."""
    draw = random.Random(-number)
    name = f"request {number}"
    end = "never" if number % 5 in (0, 1, 2) else draw.choice(("abort", "close", "cancel"))
    following = asyncio.ensure_future(_collect(engine, prompt, params, name))
    if end == "close":
        stream = engine.generate(prompt, params, f"{name}, again")
        await anext(stream)
        await stream.aclose()
    elif end != "never":
        await asyncio.sleep(draw.random() * draw.choice((0, 0.2, 2)))
        if end == "abort":
            await engine.abort(name)
        else:
            following.cancel()
    try:
        return await following
    except asyncio.CancelledError:
        return []


async def _collect(engine: AsyncLLM, *request: Any) -> list[RequestOutput]:
    return [output async for output in engine.generate(*request)]


async def _all(engine: AsyncLLM) -> list[list[RequestOutput]]:
    """What each request was told; nothing of them is left, and the engine takes another one."""
    tasks = (_follow(engine, number, *each) for number, each in enumerate(REQUESTED))
    told = await asyncio.gather(*tasks)
    while (stats := await engine.stats()).running + stats.waiting:
        await asyncio.sleep(0.01)
    assert stats.cache_usage == 0
    assert not engine._requests
    _nothing_is_held(engine._engine._core)
    (after,) = await _collect(engine, [7, 8, 9], AFTER)
    assert len(after.outputs[0].token_ids) == 3
    return told


def _nothing_is_held(core: EngineCore) -> None:
    cache = core._cache
    assert not core._jobs
    assert not core._scheduler.rows
    assert not cache.decoding
    assert cache.reserved_rows == 0
    assert cache.free_rows == core.describe().max_batch
    if isinstance(cache, BlockCache):
        assert cache.free_blocks == cache._max_blocks
        assert set(cache._references) == {0}
    if core._speculator is not None:
        proposer, governor = core._speculator._proposer, core._speculator._governor
        assert isinstance(proposer, NgramProposer)
        assert not proposer._rows
        assert not governor._accounts
        assert not core._speculator._unchecked


def _run(engine: AsyncLLM, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. In a deadlock nobody waits for its threads, at the exit neither."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        told = asyncio.run_coroutine_threadsafe(work, loop).result(SECONDS)
    except TimeoutError:
        engine._finalizer.detach()
        raise
    engine.shutdown()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    return told


@pytest.fixture(scope="module")
def native_artifact(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny random Llama with our operators over a paged cache."""
    from enginewright.builder.pipeline import build
    from enginewright.builder.recipe import make_recipe
    from enginewright.builder.targets.operators import find_compiler

    if find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    folder = tmp_path_factory.mktemp("native")
    recipe = make_recipe(
        {
            "name": "tiny",
            "source": {"path": str(make_checkpoint(folder / "checkpoint", {}))},
            "target": "cpu",
            "precision": "fp32",
            "limits": {"max_context": 128, "max_batch": 24},
        }
    )
    return build(recipe, folder / "artifacts", progress=lambda line: None)


@pytest.fixture(scope="module")
def alone() -> Callable[[Path, dict[str, Any]], Answers]:
    """The answers of an artifact to one request after another, over nothing that was cached."""
    known: dict[Path, Answers] = {}

    def answers(artifact: Path, options: dict[str, Any]) -> Answers:
        if artifact not in known:
            with LLM(artifact, enable_prefix_caching=False, **options) as llm:
                asked = ((number, *REQUESTED[number]) for number in CHECKED)
                known[artifact] = {
                    number: llm.generate(prompt, params)[0].outputs
                    for number, prompt, params in asked
                }
        return known[artifact]

    return answers


@pytest.fixture(scope="module", params=["slots", "native", "native with n-grams"])
def case(request: pytest.FixtureRequest) -> Any:
    """An artifact, how it is opened, and what speculates."""
    if request.param == "slots":
        return request.getfixturevalue("tiny_artifact"), {"threads": 1}, None
    speculation = NGRAMS if "n-grams" in request.param else None
    options = {"threads": 1, "allow_native_code": True}
    return request.getfixturevalue("native_artifact"), options, speculation


@pytest.mark.parametrize("memory", [None, 1 << 18], ids=["ample", "tight"])
def test_a_thousand_requests_and_aborts_at_every_stage(
    case: Any,
    alone: Callable[[Path, dict[str, Any]], Answers],
    memory: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact, options, speculation = case
    # Whatever is proposed is drafted, so that nothing depends on the clock.
    monkeypatch.setattr(Governor, "choose", lambda self, lengths, batch, each=0.0: dict(lengths))
    wanted = alone(artifact, options)
    engine = AsyncLLM(
        artifact,
        max_requests=2 * REQUESTS,
        kv_cache_memory_bytes=memory,
        speculative_config=speculation,
        **options,
    )
    found = _run(engine, _all(engine))
    core = engine._engine._core
    if isinstance(core._cache, BlockCache):
        assert (core.preemptions > 0) == (memory is not None)
    if speculation is not None:
        assert engine.speculation is not None
        assert 0 < engine.speculation.num_accepted_tokens < engine.speculation.num_draft_tokens
    for number, expected in wanted.items():
        joined, *more = found[number]
        for output in more:
            delta = REQUESTED[number][1].output_kind is RequestOutputKind.DELTA
            joined.add(output, aggregate=delta)
        joined.outputs.sort(key=lambda completion: completion.index)
        assert joined.finished
        assert joined.outputs == expected, number
