"""The governor at work: requests on an engine whose steps take time by a simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest

from enginewright.runtime.requests.generation import Generation, Request
from enginewright.runtime.requests.group import RequestGroup
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import Sampler
from enginewright.runtime.scheduling.core import EngineCore
from enginewright.runtime.speculation.governor import SHARE
from enginewright.runtime.speculation.ngram import NgramProposer
from enginewright.runtime.speculation.proposer import Proposer, Wanted
from enginewright.runtime.speculation.speculator import Speculator

Repeats = Callable[[int], bool]
"""Whether the token at a position goes on with a text that repeats; else it is random."""

COUNT, MOST, CHEAP, DEAR = 240, 5, 0.05, 0.4
"""Tokens of an answer and of a draft; what a position more adds to a step, which costs 1."""

PROMPTS = [[11], [12, 13], [14], [15, 16, 17]]
BATCHES = pytest.mark.parametrize("batch", [1, 4])
CYCLE = 7


def always(at: int) -> bool:
    return True


def never(at: int) -> bool:
    return False


class Guesses(Proposer):
    """Has its price, and is right where the text repeats."""

    costless = False
    seconds = 0.1

    def __init__(self, engine: Any, repeats: Repeats) -> None:
        self._engine, self._repeats = engine, repeats

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        self._engine.now += self.seconds * max(each.limit for each in wanted)
        return [self._draft(each.tokens, each.limit) for each in wanted]

    def retain(self, rows: Collection[int]) -> None:
        return

    def _draft(self, tokens: list[int], limit: int) -> list[int]:
        right = self._engine.continue_greedily(tokens, limit)
        known = [self._repeats(len(tokens) + at) for at in range(limit)]
        return [
            token if it_is else (token + 1) % 31 for token, it_is in zip(right, known, strict=True)
        ]


class Bench:
    """A core over an engine with a clock of its own."""

    def __init__(
        self,
        null_engine: Any,
        repeats: Repeats,
        share: float,
        propose: Callable[[Any], Proposer] | None = None,
    ) -> None:
        class Timed(null_engine):  # type: ignore[misc]
            now = 0.0

            def step(self, batch: Any) -> Any:
                logits = super().step(batch)
                self.now += 1 + share * (batch.input_ids.size - 1)
                return logits

            def logits(self, tokens: Any) -> Any:
                if repeats(len(tokens)):
                    return np.eye(31, dtype=np.float32)[(tokens[-1] + 1) % CYCLE]
                return super().logits(tokens)

        self.engine = Timed(steps=(4, 4, 4), block_size=4, step_invariant=True, max_context=400)
        self.speculator = None if propose is None else Speculator(propose(self.engine), MOST)
        self.core = EngineCore(
            self.engine, 64, speculator=self.speculator, clock=lambda: self.engine.now
        )
        self.repeats = repeats
        self.drafted: list[bool] = []
        """Of each step, whether it checked a draft."""

    @property
    def stats(self) -> Any:
        assert self.speculator is not None
        return self.speculator.stats

    def ask(self, prompt: Sequence[int], count: int = COUNT, number: int = 0) -> RequestGroup:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        sampler = Sampler(params, 31, (), prompt, None)
        request = Request(number, None, tuple(prompt), params)
        group = RequestGroup([Generation(request, sampler, max_context=400)])
        self.core.add(group)
        return group

    def answer(self, prompts: Sequence[Sequence[int]], count: int = COUNT) -> list[list[int]]:
        groups = [self.ask(prompt, count, number) for number, prompt in enumerate(prompts)]
        while self.core.busy:
            self.step()
        return [group.generations[0].output_token_ids for group in groups]

    def step(self) -> None:
        before = 0 if self.speculator is None else self.stats.num_drafts
        self.core.step()
        self.drafted.append(self.speculator is not None and self.stats.num_drafts > before)


def ngrams(engine: Any) -> Proposer:
    return NgramProposer(3, 1)


def guesses(repeats: Repeats) -> Callable[[Any], Proposer]:
    return lambda engine: Guesses(engine, repeats)


def drafting(null_engine: Any) -> Bench:
    """In the middle of an answer that repeats."""
    bench = Bench(null_engine, always, CHEAP, ngrams)
    bench.ask([11])
    for _ in range(40):
        bench.step()
    assert bench.drafted[-1]
    return bench


def both(
    null_engine: Any,
    batch: int,
    repeats: Repeats,
    share: float,
    propose: Callable[[Any], Proposer],
) -> tuple[Bench, Bench]:
    """The same answers without drafts and with them."""
    plain, fast = (Bench(null_engine, repeats, share, each) for each in (None, propose))
    assert plain.answer(PROMPTS[:batch]) == fast.answer(PROMPTS[:batch])
    return plain, fast


@BATCHES
@pytest.mark.parametrize("propose", [ngrams, guesses(always)], ids=["n-grams", "guesses"])
def test_a_text_that_repeats_is_drafted(
    null_engine: Any, batch: int, propose: Callable[[Any], Proposer]
) -> None:
    plain, fast = both(null_engine, batch, always, CHEAP, propose)
    assert fast.engine.now < plain.engine.now / 2
    assert fast.stats.num_accepted_tokens > 0.7 * batch * COUNT
    assert fast.stats.num_accepted_tokens > 0.95 * fast.stats.num_draft_tokens


@BATCHES
@pytest.mark.parametrize("share", [CHEAP, DEAR])
def test_a_random_text_loses_nothing_to_n_grams(null_engine: Any, batch: int, share: float) -> None:
    plain, fast = both(null_engine, batch, never, share, ngrams)
    assert fast.engine.now < 1.05 * plain.engine.now
    assert sum(fast.drafted) < COUNT / 4, "of 31 tokens one is right by chance now and then"


@BATCHES
@pytest.mark.parametrize("share", [CHEAP, DEAR])
def test_a_random_text_loses_little_to_what_has_its_price(
    null_engine: Any, batch: int, share: float
) -> None:
    plain, fast = both(null_engine, batch, never, share, guesses(never))
    assert plain.engine.now < fast.engine.now < 1.05 * plain.engine.now
    assert any(fast.drafted[:12]), "it has the benefit of the doubt"
    assert sum(fast.drafted[12:]) < COUNT / 10


@BATCHES
@pytest.mark.parametrize("share", [CHEAP, DEAR])
def test_drafting_stops_where_a_text_no_longer_repeats(
    null_engine: Any, batch: int, share: float
) -> None:
    bench = Bench(null_engine, lambda at: at < 120, share, ngrams)
    groups = [bench.ask(prompt, number=at) for at, prompt in enumerate(PROMPTS[:batch])]
    while min(len(each.generations[0].output_token_ids) for each in groups) < 120:
        bench.step()
    assert any(bench.drafted[-5:])
    before = len(bench.drafted)
    while bench.core.busy:
        bench.step()
    after = bench.drafted[before:]
    assert len(after) > 80
    assert sum(after[25:]) < len(after) / 5


@BATCHES
def test_a_text_that_begins_to_repeat_is_noticed(null_engine: Any, batch: int) -> None:
    """Of what was proposed and not checked, the tokens that came say whether it was right."""
    plain, fast = both(null_engine, batch, lambda at: at >= 120, CHEAP, ngrams)
    assert fast.engine.now < 0.75 * plain.engine.now
    assert fast.stats.num_accepted_tokens > 0.3 * batch * COUNT


@BATCHES
@pytest.mark.parametrize("share", [CHEAP, DEAR])
@pytest.mark.parametrize("phase", [6, 10, 30])
def test_no_row_loses_more_than_its_share(
    null_engine: Any, batch: int, share: float, phase: int
) -> None:
    """Now it repeats, now not: whatever is believed of it is soon wrong.

    What a size of step costs that never ran is not known before it is tried once.
    """
    bench = Bench(null_engine, lambda at: at // phase % 2 == 0, share, ngrams)
    for number, prompt in enumerate(PROMPTS[:batch]):
        bench.ask(prompt, number=number)
    assert bench.speculator is not None
    governor = bench.speculator._governor
    plain, widest = (1 + share * (batch * count - 1) for count in (1, 1 + MOST))
    while bench.core.busy:
        bench.step()
        for account in governor._accounts.values():
            assert account.saved >= -(SHARE * account.seconds + plain) - (widest - plain)
    assert any(bench.drafted)
    without = Bench(null_engine, bench.repeats, share)
    without.answer(PROMPTS[:batch])
    assert bench.engine.now < 1.05 * without.engine.now


def test_beside_a_row_that_repeats_the_others_lose_little(null_engine: Any) -> None:
    """Although its drafts would pay for the step: nine tokens in 2.2, without them four in 1.2."""

    def finished(bench: Bench) -> list[float]:
        """When each answer was there."""
        one = bench.engine.logits
        bench.engine.logits = lambda tokens: (
            one(tokens) if tokens[0] == 11 else null_engine.logits(bench.engine, tokens)
        )
        groups = [bench.ask(prompt, number=at) for at, prompt in enumerate(PROMPTS)]
        at: dict[int, float] = {}
        while bench.core.busy:
            bench.step()
            for number, group in enumerate(groups):
                if len(group.generations[0].output_token_ids) == COUNT:
                    at.setdefault(number, bench.engine.now)
        return [at[number] for number in range(len(groups))]

    plain, fast = (finished(Bench(null_engine, always, CHEAP, each)) for each in (None, ngrams))
    assert all(now < 1.05 * before for now, before in zip(fast, plain, strict=True))


def test_what_plain_steps_take_is_measured_anew_when_a_request_joins(null_engine: Any) -> None:
    bench = drafting(null_engine)
    assert bench.speculator is not None
    times = bench.speculator._governor.times
    assert times.plain(1) is not None
    bench.ask([12, 13], number=1)
    bench.step()
    assert times.plain(1) is None
    while not bench.drafted[-1]:
        bench.step()
    assert times.plain(2) is not None


def test_after_a_failure_nothing_is_left_of_the_rows_that_ran(null_engine: Any) -> None:
    """A row of the same number is as one of an engine that has just begun, but for its times."""
    bench = drafting(null_engine)
    bench.engine.fail_at = 0
    with pytest.raises(RuntimeError, match="the device is gone"):
        bench.step()
    bench.engine.fail_at = None
    assert bench.speculator is not None
    assert not bench.speculator._unchecked
    assert not bench.speculator._governor._accounts
    (found,) = bench.answer([[4, 3, 2, 1]], 60)
    assert found == bench.engine.continue_greedily([4, 3, 2, 1], 60)
    assert not any(bench.drafted[40:43]), "its text was not yet seen to repeat"
    assert any(bench.drafted[43:])
