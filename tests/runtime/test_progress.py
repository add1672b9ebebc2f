"""The progress bar: where it is drawn, with what, and that it counts every prompt once."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import LLM, ArgumentError, RequestError, SamplingParams
from enginewright.runtime.progress import progress

PARAMS = SamplingParams(temperature=0, max_tokens=3)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Recorder:
    """A tqdm of the caller's."""

    made: list[Recorder]

    def __init__(self, **options: Any) -> None:
        self.options, self.counts, self.closed = options, [], 0
        type(self).made.append(self)

    def update(self, count: int) -> None:
        self.counts.append(count)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def recorder() -> type[Recorder]:
    Recorder.made = []
    return Recorder


@pytest.fixture(scope="module")
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1) as llm:
        yield llm


def test_a_function_that_gives_no_bar_is_named(llm: LLM) -> None:
    with pytest.raises(ArgumentError, match=r"use_tqdm=.* gave a NoneType: it must give a bar"):
        llm.generate("a", PARAMS, use_tqdm=lambda *args, **options: None)
    assert llm.generate("a", PARAMS)[0].finished


def test_a_terminal_shows_how_far_a_call_has_come(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    llm.generate(["a", "b", "c"], PARAMS)
    assert "Processed prompts" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    before = terminal.getvalue()
    llm.generate(["a", "b", "c"], PARAMS, use_tqdm=False)
    llm.generate([], PARAMS)
    assert terminal.getvalue() == before


def test_without_tqdm_there_is_a_bar_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with progress(4, True) as advance:
        advance(1)
        advance(3)
    assert "Processed prompts" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_a_tqdm_of_ones_own_counts_every_prompt_once(llm: LLM, recorder: type[Recorder]) -> None:
    llm.generate(["a"] * 9, PARAMS, use_tqdm=recorder)
    llm.chat([[{"role": "user", "content": "hi"}]] * 2, PARAMS, recorder)
    llm.enqueue(["a", "b"], PARAMS)
    llm.generate("c", PARAMS)
    llm.wait_for_completion(use_tqdm=recorder)
    assert [bar.options["total"] for bar in recorder.made] == [9, 2, 2]
    assert [sum(bar.counts) for bar in recorder.made] == [9, 2, 2]
    assert [bar.closed for bar in recorder.made] == [1, 1, 1]


def test_the_bar_is_closed_when_the_call_fails(llm: LLM, recorder: type[Recorder]) -> None:
    def raises(ids: list[int], row: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(RequestError):
        llm.generate("a", SamplingParams(logits_processors=[raises]), use_tqdm=recorder)
    assert recorder.made[0].closed == 1


@pytest.mark.parametrize("wrong", [None, 3, "yes"])
def test_what_cannot_draw_is_named(llm: LLM, wrong: Any) -> None:
    for call in (llm.generate, llm.enqueue):
        with pytest.raises(RequestError, match=rf"use_tqdm={wrong!r} is not legal"):
            call("a", PARAMS, use_tqdm=wrong)
    llm.enqueue("a", PARAMS)
    with pytest.raises(RequestError, match="use_tqdm="):
        llm.wait_for_completion(use_tqdm=wrong)
    assert len(llm.wait_for_completion()) == 1
