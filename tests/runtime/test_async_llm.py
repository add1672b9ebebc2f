"""AsyncLLM on a tiny artifact: the outputs of LLM, many at a time, and every way to end early."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import (
    LLM,
    ArgumentError,
    AsyncLLM,
    BeamSearchParams,
    ChatTemplateError,
    EnginewrightError,
    OverloadedError,
    PromptError,
    RequestError,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    SamplingParamsError,
)

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ENDLESS = SamplingParams(
    temperature=0, max_tokens=None, ignore_eos=True, output_kind=RequestOutputKind.DELTA
)
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1) as llm:
        yield llm


def run(
    artifact: Path, task: Callable[[AsyncLLM], Coroutine[Any, Any, Any]], **options: Any
) -> Any:
    """What the task gives, run on an AsyncLLM of its own; never longer than a minute."""

    async def main() -> Any:
        async with AsyncLLM(artifact, threads=1, **options) as engine:
            return await asyncio.wait_for(task(engine), timeout=60)

    return asyncio.run(main())


async def collect(outputs: Any) -> list[RequestOutput]:
    return [output async for output in outputs]


class Gate:
    """Lets the engine step only as often as it is told; notes how many rows each step had."""

    def __init__(self, engine: AsyncLLM) -> None:
        self._inner = engine._engine._core._engine
        self._step = self._inner.step
        self._permits = threading.Semaphore(0)
        self.rows: list[int] = []
        self.error: Exception | None = None
        self._inner.step = self._gated  # type: ignore[method-assign]

    def let(self, steps: int) -> None:
        self._permits.release(steps)

    def open(self) -> None:
        self.let(100_000)

    def _gated(self, batch: Any) -> Any:
        self._permits.acquire()
        self.rows.append(len(batch.input_ids))
        if self.error is not None:
            raise self.error
        return self._step(batch)


@contextmanager
def gated(engine: AsyncLLM) -> Iterator[Gate]:
    gate = Gate(engine)
    try:
        yield gate
    finally:
        gate.open()


def test_many_tasks_get_what_llm_gives(tiny_artifact: Path, llm: LLM) -> None:
    kinds = list(RequestOutputKind)
    prompts = [f"prompt {number}" * (1 + number % 5) for number in range(20)]
    params = [
        SamplingParams(
            temperature=0 if number % 2 else 1.0,
            n=1 if number % 2 else 1 + number % 3,
            seed=number,
            max_tokens=4 + number,
            logprobs=2 if number % 3 else None,
            output_kind=kinds[number % 3],
        )
        for number in range(20)
    ]
    expected = llm.generate(prompts, params)

    async def task(engine: AsyncLLM) -> list[list[RequestOutput]]:
        pairs = zip(prompts, params, strict=True)
        return await asyncio.gather(*(collect(engine.generate(*pair)) for pair in pairs))

    for told, wanted, each in zip(run(tiny_artifact, task), expected, params, strict=True):
        assert [output.finished for output in told] == [False] * (len(told) - 1) + [True]
        joined = told[0]
        for output in told[1:]:
            joined.add(output, aggregate=each.output_kind is RequestOutputKind.DELTA)
        joined.outputs.sort(key=lambda completion: completion.index)
        assert joined.outputs == wanted.outputs
        assert joined.prompt_token_ids == wanted.prompt_token_ids
        if each.output_kind is RequestOutputKind.FINAL_ONLY:
            assert len(told) == 1


def test_the_llms_seed_repeats(tiny_artifact: Path) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=12)
    with LLM(tiny_artifact, threads=1, seed=5) as llm:
        expected = [output.outputs[0].token_ids for output in llm.generate(["Hi", "Hi"], params)]

    async def task(engine: AsyncLLM) -> list[Any]:
        streams = [engine.generate("Hi", params) for _ in range(2)]
        return await asyncio.gather(*map(collect, streams))

    found = [told[-1].outputs[0].token_ids for told in run(tiny_artifact, task, seed=5)]
    assert found == expected


def test_chat_is_llms(tiny_artifact: Path, llm: LLM) -> None:
    (expected,) = llm.chat(MESSAGES, GREEDY, chat_template="chatml")

    async def task(engine: AsyncLLM) -> RequestOutput:
        (await collect(engine.chat(MESSAGES, GREEDY, add_generation_prompt=False)))
        return (await collect(engine.chat(MESSAGES, GREEDY, chat_template="chatml")))[-1]

    found = run(tiny_artifact, task)
    assert (found.prompt, found.outputs) == (expected.prompt, expected.outputs)


def test_beam_search_is_llms(tiny_artifact: Path, llm: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=6)
    (expected,) = llm.beam_search(["Hello"], params)

    async def task(engine: AsyncLLM) -> Any:
        beside = asyncio.ensure_future(collect(engine.generate("beside", GREEDY)))
        return await engine.beam_search("Hello", params), await beside

    found, beside = run(tiny_artifact, task)
    assert found == expected
    assert beside[-1].outputs == llm.generate("beside", GREEDY)[0].outputs


def test_seeds_after_a_beam_search_do_not_depend_on_when_it_is_prepared(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows have their numbers at the call, as those of every request."""
    beams = BeamSearchParams(beam_width=3, max_tokens=2)
    params = SamplingParams(temperature=1.5, max_tokens=12)
    with LLM(tiny_artifact, threads=1, seed=5) as llm:
        llm.beam_search(["Hello"], beams)
        expected = llm.generate("Hi", params)[0].outputs[0].token_ids
    preparing, go_on = threading.Event(), threading.Event()

    async def task(engine: AsyncLLM) -> Any:
        encode = engine.get_tokenizer().encode

        def slowly(text: str, *more: Any) -> list[int]:
            if text == "Hello":
                preparing.set()
                assert go_on.wait(60)
            return encode(text, *more)

        monkeypatch.setattr(engine.get_tokenizer(), "encode", slowly)
        searching = asyncio.ensure_future(engine.beam_search("Hello", beams))
        await asyncio.to_thread(preparing.wait, 60)
        told = await collect(engine.generate("Hi", params))
        go_on.set()
        await searching
        return told[-1].outputs[0].token_ids

    assert run(tiny_artifact, task, seed=5) == expected


@pytest.mark.parametrize("request_id", [None, 5, [None], np.array(3)])
def test_what_is_no_requests_id_is_named(tiny_artifact: Path, request_id: Any) -> None:
    async def task(engine: AsyncLLM) -> None:
        with pytest.raises(RequestError, match=r"request_id=.* it must be text, or a list of such"):
            await engine.abort(request_id)

    run(tiny_artifact, task)


def test_an_aborted_request_ends_with_the_step_that_runs(tiny_artifact: Path) -> None:
    async def task(engine: AsyncLLM) -> list[RequestOutput]:
        with gated(engine) as gate:
            stream = engine.generate("Hello", ENDLESS, "mine")
            gate.let(1)
            told = [await anext(stream)]
            await engine.abort("mine")
            await engine.abort(["mine", "unknown"])
            gate.open()
            return told + await collect(stream)

    told = run(tiny_artifact, task)
    assert told[-1].finished
    assert told[-1].request_id == "mine"
    assert told[-1].outputs[0].finish_reason == "abort"
    assert sum(len(output.outputs[0].token_ids) for output in told) <= 2


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_the_last_output_of_an_aborted_request_tells_all(
    tiny_artifact: Path, kind: RequestOutputKind
) -> None:
    params = SamplingParams(n=2, seed=1, max_tokens=None, ignore_eos=True, output_kind=kind)

    async def task(engine: AsyncLLM) -> list[RequestOutput]:
        with gated(engine) as gate:
            following = asyncio.ensure_future(collect(engine.generate("Hello", params, "mine")))
            watched = engine.generate("Hello", ENDLESS)
            gate.let(6)
            await anext(watched)
            await engine.abort("mine")
            gate.open()
            told = await following
            await watched.aclose()
            return told

    told = run(tiny_artifact, task)
    assert told[-1].finished
    assert [(each.index, each.finish_reason) for each in told[-1].outputs] == [
        (0, "abort"),
        (1, "abort"),
    ]


def test_a_request_can_be_aborted_while_it_is_prepared(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparing, go_on = threading.Event(), threading.Event()

    async def task(engine: AsyncLLM) -> list[RequestOutput]:
        encode = engine.get_tokenizer().encode

        def slowly(*args: Any) -> list[int]:
            preparing.set()
            assert go_on.wait(60)
            return encode(*args)

        monkeypatch.setattr(engine.get_tokenizer(), "encode", slowly)
        following = asyncio.ensure_future(collect(engine.generate("Hello", ENDLESS, "mine")))
        await asyncio.to_thread(preparing.wait, 60)
        await engine.abort("mine")
        go_on.set()
        return await following

    (told,) = run(tiny_artifact, task)
    assert told.outputs[0].finish_reason == "abort"
    assert told.outputs[0].token_ids == []


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_an_abandoned_request_leaves_the_engine(tiny_artifact: Path, how: str) -> None:
    async def task(engine: AsyncLLM) -> list[int]:
        with gated(engine) as gate:
            stream = engine.generate("Hello", ENDLESS)
            gate.let(2)
            await anext(stream)
            if how == "close":
                await stream.aclose()
            else:
                following = asyncio.ensure_future(collect(stream))
                await asyncio.sleep(0)  # it waits for the next output now
                following.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await following
            gate.open()
            await collect(engine.generate("other", GREEDY))
            return gate.rows

    rows = run(tiny_artifact, task)
    assert set(rows) == {1}, "the two never ran beside each other"
    assert len(rows) <= 2 + 1 + 8, "two steps, the one that was under way, and the other's eight"


def test_a_slow_reader_gets_outputs_joined(tiny_artifact: Path, llm: LLM) -> None:
    params = SamplingParams(
        temperature=0,
        max_tokens=30,
        ignore_eos=True,
        logprobs=1,
        output_kind=RequestOutputKind.DELTA,
    )
    (expected,) = llm.generate("Hello", params)

    async def task(engine: AsyncLLM) -> list[RequestOutput]:
        with gated(engine) as gate:
            stream = engine.generate("Hello", params)
            gate.let(1)
            told = [await anext(stream)]
            gate.open()
            await collect(engine.generate("x", SamplingParams(max_tokens=60, ignore_eos=True)))
            return told + await collect(stream)

    first, rest = run(tiny_artifact, task)
    assert len(first.outputs[0].token_ids) == 1
    first.add(rest, aggregate=True)
    assert first.outputs == expected.outputs
    assert first.finished


def test_an_engine_that_fails_fails_every_request(
    tiny_artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def task(engine: AsyncLLM) -> list[Any]:
        assert engine.is_running
        assert not engine.errored
        with gated(engine) as gate:
            first = engine.generate("first", ENDLESS)
            gate.let(1)
            await anext(first)
            streams = [first, *(engine.generate("Hello", ENDLESS) for _ in range(5))]
            running = [asyncio.ensure_future(collect(stream)) for stream in streams]
            gate.error = RuntimeError("the device is gone")
            gate.open()
            errors = await asyncio.gather(*running, return_exceptions=True)
        assert engine.errored
        assert not engine.is_running
        with pytest.raises(EnginewrightError, match="the device is gone"):
            await anext(engine.generate("later", GREEDY))
        with pytest.raises(EnginewrightError, match="the device is gone"):
            await engine.reset_prefix_cache()
        return errors

    errors = run(tiny_artifact, task)
    assert len({id(error) for error in errors}) == 6
    for error in errors:
        assert isinstance(error, EnginewrightError)
        assert "the engine failed (RuntimeError: the device is gone)" in str(error)
        assert isinstance(error.__cause__, RuntimeError)
    assert "the engine failed" in caplog.text


def test_closing_fails_what_runs_and_what_comes(tiny_artifact: Path) -> None:
    async def task() -> None:
        engine = AsyncLLM(tiny_artifact, threads=1)
        stream = engine.generate("Hello", ENDLESS)
        await anext(stream)
        await asyncio.to_thread(engine.shutdown)
        engine.shutdown()
        with pytest.raises(EnginewrightError, match="was closed"):
            await collect(stream)
        with pytest.raises(EnginewrightError, match="was closed"):
            await collect(engine.generate("Hello", GREEDY))
        assert not engine.is_running
        assert not engine.errored

    asyncio.run(asyncio.wait_for(task(), 60))


def test_an_idle_engine_is_not_stepped(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []

    async def task(engine: AsyncLLM) -> None:
        core = engine._engine._core
        step = core.step
        monkeypatch.setattr(core, "step", lambda: calls.append(None) or step())
        for _ in range(3):
            await collect(engine.generate("Hello", GREEDY))

    run(tiny_artifact, task)
    # A step for each token, one of the prompt's, and a look after each abort and each submission.
    assert len(calls) <= 3 * (8 + 2 + 2)


def test_more_requests_than_it_takes_are_refused(tiny_artifact: Path) -> None:
    async def task(engine: AsyncLLM) -> None:
        streams = [engine.generate("Hello", ENDLESS) for _ in range(2)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(OverloadedError, match=r"2 requests are unfinished.*max_requests"):
            await anext(engine.generate("Hello", GREEDY))
        await streams[0].aclose()
        assert (await collect(engine.generate("Hello", GREEDY)))[-1].finished
        await streams[1].aclose()

    run(tiny_artifact, task, max_requests=2)


def test_wrong_requests_fail_alone(tiny_artifact: Path, llm: LLM) -> None:
    def raises(ids: list[int], row: Any) -> Any:
        raise ZeroDivisionError("by design")

    async def task(engine: AsyncLLM) -> list[RequestOutput]:
        good = asyncio.ensure_future(collect(engine.generate("Hello", GREEDY)))
        with pytest.raises(PromptError, match="the prompt is empty"):
            await anext(engine.generate("", GREEDY))
        with pytest.raises(SamplingParamsError, match="give a SamplingParams"):
            engine.generate("a", {"temperature": 0})  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="request_id=5 is not legal"):
            engine.generate("a", GREEDY, 5)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="lora_request="):
            engine.generate("a", GREEDY, lora_request="adapter")  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="did you mean chat_template"):
            engine.chat(MESSAGES, chat_templat="x")  # type: ignore[call-arg]
        refusing = engine.chat(MESSAGES, chat_template="{{ raise_exception('no user') }}")
        with pytest.raises(ChatTemplateError, match="no user"):
            await anext(refusing)
        with pytest.raises(RequestError, match="by design"):
            await collect(engine.generate("a", SamplingParams(logits_processors=[raises])))
        with pytest.raises(SamplingParamsError, match="give a BeamSearchParams"):
            await engine.beam_search("a", GREEDY)  # type: ignore[arg-type]
        with pytest.raises(SamplingParamsError, match="beam_width=9"):
            await engine.beam_search("a", BeamSearchParams(beam_width=9, max_tokens=2))
        twice = [engine.generate("a", ENDLESS, "same") for _ in range(2)]
        await anext(twice[0])
        with pytest.raises(RequestError, match="request_id='same' is that of a request"):
            await anext(twice[1])
        await twice[0].aclose()
        return await good

    assert run(tiny_artifact, task)[-1].outputs == llm.generate("Hello", GREEDY)[0].outputs


def test_an_llm_may_be_handed_over(tiny_artifact: Path, llm: LLM) -> None:
    loaded = LLM(tiny_artifact, threads=1)
    with pytest.raises(ArgumentError, match="seed goes to the LLM"):
        AsyncLLM(loaded, seed=3)
    engine = AsyncLLM(loaded)
    with pytest.raises(EnginewrightError, match="handed over to an AsyncLLM"):
        loaded.generate("Hello")
    assert engine.max_context == llm.max_context
    found = asyncio.run(collect(engine.generate("Hello", GREEDY)))
    assert found[-1].outputs == llm.generate("Hello", GREEDY)[0].outputs
    engine.shutdown()


@pytest.mark.parametrize("most", [0, "2", True])
def test_a_wrong_max_requests_is_named(tiny_artifact: Path, most: Any) -> None:
    with pytest.raises(EnginewrightError, match=rf"max_requests={most!r} is not legal"):
        AsyncLLM(tiny_artifact, max_requests=most)


def test_one_that_is_forgotten_ends_its_thread(tiny_artifact: Path) -> None:
    engine = AsyncLLM(tiny_artifact, threads=1)
    asyncio.run(collect(engine.generate("Hello", GREEDY)))
    thread = engine._engine._thread
    assert thread.is_alive()
    del engine
    gc.collect()
    assert not thread.is_alive()


_FORGETFUL = """
import asyncio, sys
from enginewright.runtime import AsyncLLM, SamplingParams

engine = AsyncLLM(sys.argv[1], threads=1)
params = SamplingParams(max_tokens=None, ignore_eos=True)
streams = [engine.generate("Hello", params) for _ in range(4)]

async def main():
    for stream in streams:
        await anext(stream)
    print("running")

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""


def test_a_program_that_forgets_it_ends(tiny_artifact: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORGETFUL, str(tiny_artifact)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "running\n"), done.stderr
