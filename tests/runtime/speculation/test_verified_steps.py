"""Drafts change no token, and the cache names nothing that was rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.kv_cache.blocks import BlockCache
from enginewright.runtime.kv_cache.slots import SlotCache
from enginewright.runtime.requests.generation import Generation, Request
from enginewright.runtime.requests.group import RequestGroup
from enginewright.runtime.requests.outputs import CompletionOutput
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.repetition import RepetitionDetectionParams
from enginewright.runtime.sampling.sampler import Sampler
from enginewright.runtime.scheduling.core import EngineCore
from enginewright.runtime.speculation.draft import DraftProposer
from enginewright.runtime.speculation.ngram import NgramProposer
from enginewright.runtime.speculation.proposer import Proposer, Wanted
from enginewright.runtime.speculation.speculator import Speculator

EOS = 3
LAYOUTS = {"slots": ((4, 4, 1), 0), "wide slots": ((4, 4, 4), 0), "paged": ((4, 4, 4), 4)}
MANY = 2000
STEMS = [list(range(stem, stem + 30)) for stem in (0, 1)]


class Bench:
    """A core over an engine of one layout, with or without a speculator."""

    def __init__(self, null_engine: Any, layout: str, **more: Any) -> None:
        steps, block = LAYOUTS[layout]
        self.engine = null_engine(steps=steps, block_size=block, step_invariant=True, **more)
        self.speculator: Speculator | None = None

    def speculate(self, proposer: Proposer, always: Any, most: int = 5) -> None:
        self.speculator = Speculator(proposer, most, always(proposer.costless))

    def open(self, **more: Any) -> EngineCore:
        self.core = EngineCore(self.engine, 16, speculator=self.speculator, **more)
        return self.core

    def group(self, number: int, prompt: Sequence[int], params: SamplingParams) -> RequestGroup:
        info = self.core.describe()
        return RequestGroup(
            [
                Generation(
                    Request(number * 100 + index, None, tuple(prompt), params, index),
                    Sampler(params, info.vocab_size, (EOS,), prompt, 9, index),
                    max_context=info.max_context,
                    eos_token_ids=(EOS,),
                )
                for index in range(params.n)
            ]
        )

    def answer(self, asked: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Any]:
        groups = [self.group(number, *each) for number, each in enumerate(asked)]
        for group in groups:
            self.core.add(group)
        for _ in range(MANY):
            if not self.core.busy:
                return groups
            self.core.step()
            named(self.core, self.engine)
        raise AssertionError("a request does not end")

    @property
    def stats(self) -> Any:
        assert self.speculator is not None
        return self.speculator.stats


def finish(core: EngineCore) -> None:
    while core.busy:
        core.step()


def named(core: EngineCore, engine: Any) -> None:
    """What can be taken over is what was computed."""
    cache = core._cache
    if isinstance(cache, BlockCache):
        for (_, tokens, _), block in cache._block_of.items():
            assert engine.pool[block].tolist() == list(tokens)
    else:
        assert isinstance(cache, SlotCache)
        if cache._commands:  # slots move before the next step
            return
        for content, slot in zip(engine.pool, cache._slots, strict=True):
            assert content[: slot.length].tolist() == list(slot.tokens)[: slot.length]


def outputs(groups: Sequence[Any]) -> list[list[CompletionOutput]]:
    return [group.output().outputs for group in groups]


REQUESTS = st.lists(
    st.tuples(st.sampled_from(STEMS), st.integers(1, 30), st.integers(1, 24), st.integers(0, 30)),
    min_size=1,
    max_size=7,
)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=40)
@given(requests=REQUESTS, wrong=st.integers(2, 9), small=st.booleans())
def test_any_mix_gives_what_each_request_gives_alone(
    null_engine: Any,
    always: Any,
    oracle: Any,
    layout: str,
    requests: list[tuple[list[int], int, int, int]],
    wrong: int,
    small: bool,
) -> None:
    bench = Bench(null_engine, layout)
    engine = bench.engine
    bench.speculate(oracle(engine.continue_greedily, wrong, 31), always)
    core = bench.open(kv_cache_memory_bytes=8 * 80 if small else None)
    asked = [
        ([*stem[:length], last], SamplingParams(temperature=0, max_tokens=count, ignore_eos=True))
        for stem, length, count, last in requests
    ]
    groups = bench.answer(asked)
    for group, (prompt, params) in zip(groups, asked, strict=True):
        assert group.generations[0].output_token_ids == engine.continue_greedily(
            prompt, params.max_tokens
        )
    assert not core._scheduler.rows


PARAMS = {
    "greedy": {"temperature": 0},
    "eos in a draft": {"temperature": 0, "ignore_eos": False},
    "stop token": {"temperature": 0, "stop_token_ids": [5, 11, 17]},
    "seeded": {"seed": 4, "temperature": 0.8},
    "several": {"seed": 4, "n": 3, "temperature": 0.3},
    "penalties": {
        "temperature": 0,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.2,
    },
    "bad words": {"temperature": 0, "logit_bias": {3: 2.0}, "min_tokens": 6, "ignore_eos": False},
    "logprobs": {"temperature": 0, "logprobs": 3, "prompt_logprobs": 2},
    "processor": {
        "seed": 1,
        "logits_processors": [lambda output, logits: np.roll(logits, len(output))],
    },
    "repetition": {
        "temperature": 0,
        "allowed_token_ids": [7],
        "repetition_detection": RepetitionDetectionParams(2, 1, 4),
    },
}


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_are_those_of_plain_decoding(
    null_engine: Any, always: Any, oracle: Any, layout: str, name: str
) -> None:
    fields = {"max_tokens": 20, "ignore_eos": True, "detokenize": False} | PARAMS[name]
    asked = [(STEMS[0][:length], SamplingParams(**fields)) for length in (3, 9, 9, 21)]
    plain, fast = Bench(null_engine, layout), Bench(null_engine, layout)
    plain.open()
    wanted = plain.answer(asked[:1]) + plain.answer(asked)
    known = {tuple(prompt): group for (prompt, _), group in zip(asked, wanted[1:], strict=True)}

    def knows(tokens: Sequence[int], count: int) -> list[int]:
        """What plain decoding gave to this prompt, to whichever of its outputs begins so."""
        for prompt, group in known.items():
            for each in group.generations:
                ids = [*prompt, *each.output_token_ids]
                if ids[: len(tokens)] == list(tokens):
                    after = ids[len(tokens) : len(tokens) + count]
                    return after + [0] * (count - len(after))
        return [0] * count

    fast.speculate(oracle(knows, 4, 31), always)
    fast.open()
    found = fast.answer(asked[:1]) + fast.answer(asked)
    assert outputs(found) == outputs(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.output().prompt_logprobs == other.output().prompt_logprobs
    assert fast.stats.num_accepted_tokens > 0, "else nothing was tested"
    assert len(fast.engine.ran) < len(plain.engine.ran)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fewer_steps_run_and_the_counts_say_why(
    null_engine: Any, always: Any, oracle: Any, layout: str
) -> None:
    bench = Bench(null_engine, layout)
    bench.speculate(oracle(bench.engine.continue_greedily, 10**9, 31), always, most=3)
    bench.open()
    params = SamplingParams(temperature=0, max_tokens=41, ignore_eos=True)
    (group,) = bench.answer([([1, 2], params)])
    metrics, stats = group.output().metrics, bench.stats
    assert len(bench.engine.ran) == 41 - stats.num_accepted_tokens
    assert metrics.num_accepted_tokens == stats.num_accepted_tokens == stats.num_draft_tokens
    assert stats.acceptance_rate == 1.0
    assert len(stats.num_accepted_tokens_per_pos) == 3
    assert stats.num_accepted_tokens_per_pos[0] == stats.num_drafts


def test_n_grams_speed_up_what_repeats(null_engine: Any, always: Any) -> None:
    bench = Bench(null_engine, "paged")
    bench.speculate(NgramProposer(3, 1), always)
    bench.open()
    params = SamplingParams(
        temperature=0, max_tokens=30, ignore_eos=True, allowed_token_ids=[7], detokenize=False
    )
    (group,) = bench.answer([([5, 6, 7], params)])
    assert group.generations[0].output_token_ids == [7] * 30
    assert len(bench.engine.ran) < 12


def test_rows_that_must_be_exact_are_not_drafted_for(
    null_engine: Any, always: Any, oracle: Any
) -> None:
    engine = null_engine(steps=(4, 4, 4), block_size=4)
    assert engine.describe().batch_invariant
    proposer = oracle(engine.continue_greedily, 9, 31)
    core = EngineCore(engine, speculator=Speculator(proposer, 4, always(True)))
    bench = Bench(null_engine, "paged")
    bench.core = core
    greedy = bench.group(0, [1, 2], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    core.add(greedy)
    while core.busy:
        core.step()
    assert {kind for kind, _, _ in engine.ran} == {"prefill", "decode"}


class Drafting:
    """A draft's engine whose guesses are wrong where the target's tokens add up to that."""

    def __init__(self, null_engine: Any, layout: str, **more: Any) -> None:
        steps, block = LAYOUTS[layout]

        class Smaller(null_engine):  # type: ignore[misc]
            def logits(self, tokens: Any) -> Any:
                scores = super().logits(tokens)
                return np.roll(scores, 1) if int(tokens.sum()) % 4 == 0 else scores

        self.engine = Smaller(steps=steps, block_size=block, **more)
        self.proposer = DraftProposer(self.engine)
        propose = self.proposer.propose

        def checked(wanted: Any) -> Any:
            drafts = propose(wanted)
            for each, draft in zip(wanted, drafts, strict=True):
                assert draft == self.engine.continue_greedily(each.tokens, len(draft))
                room = self.engine.describe().max_context
                assert len(draft) == max(min(each.limit, room - len(each.tokens)), 0) or not draft
            return drafts

        self.proposer.propose = checked  # type: ignore[method-assign]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("drafts", [*LAYOUTS, "no extend", "short", "few"])
@settings(max_examples=8)
@given(requests=REQUESTS, small=st.booleans())
def test_a_draft_follows_its_targets_rows(
    null_engine: Any,
    always: Any,
    layout: str,
    drafts: str,
    requests: list[tuple[list[int], int, int, int]],
    small: bool,
) -> None:
    bench = Bench(null_engine, layout)
    more: dict[str, Any] = {"short": {"max_context": 24}, "few": {"max_batch": 2}}.get(drafts, {})
    drafting = Drafting(null_engine, drafts if drafts in LAYOUTS else "paged", **more)
    if drafts == "no extend":
        drafting.engine._info = bench.engine._info.__class__(
            **{**vars(drafting.engine._info), "steps": bench.engine._info.steps.__class__(4, 4, 0)}
        )
        drafting.proposer.__init__(drafting.engine)  # type: ignore[misc]
    bench.speculate(drafting.proposer, always, most=4)
    core = bench.open(kv_cache_memory_bytes=2 * 8 * 72 if small else None)  # half is the draft's
    asked = [
        ([*stem[:length], last], SamplingParams(temperature=0, max_tokens=count, ignore_eos=True))
        for stem, length, count, last in requests
    ]
    for group, (prompt, params) in zip(bench.answer(asked), asked, strict=True):
        expected = bench.engine.continue_greedily(prompt, params.max_tokens)
        assert group.generations[0].output_token_ids == expected
    assert not drafting.proposer._rows
    assert not drafting.proposer._cache.decoding
    named(core, bench.engine)


def test_a_draft_that_was_wrong_leaves_no_room_taken(null_engine: Any) -> None:
    proposer = Drafting(null_engine, "paged").proposer
    cache, tokens = proposer._cache, [1, 2, 3]
    assert isinstance(cache, BlockCache)
    free = cache.free_blocks
    assert len(proposer.propose([Wanted(0, tokens, 30)])[0]) == 30
    taken = free - cache.free_blocks
    tokens.append(0)  # none of them was right
    proposer.propose([])
    assert (taken > 1, free - cache.free_blocks) == (True, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("after", range(12))
def test_an_abort_leaves_no_row_behind(
    null_engine: Any, always: Any, layout: str, after: int
) -> None:
    bench = Bench(null_engine, layout)
    drafting = Drafting(null_engine, layout)
    bench.speculate(drafting.proposer, always)
    core = bench.open()
    groups = [
        bench.group(number, STEMS[0][:length], SamplingParams(n=n, seed=1, max_tokens=25))
        for number, (length, n) in enumerate([(5, 1), (20, 2), (9, 1)])
    ]
    for group in groups:
        core.add(group)
    for _ in range(after):
        core.step()
    core.abort(groups[1:2])
    assert set(drafting.proposer._rows) <= set(core._scheduler.rows)
    core.abort(groups)
    assert not core._scheduler.rows
    assert not drafting.proposer._rows
    assert not drafting.proposer._cache.decoding
    assert core._cache.free_rows == 4
    assert drafting.proposer._cache.free_rows == 4


def test_a_draft_that_fails_ends_the_jobs_and_leaves_an_engine_that_works(
    null_engine: Any, always: Any
) -> None:
    bench = Bench(null_engine, "paged")
    drafting = Drafting(null_engine, "paged")
    bench.speculate(drafting.proposer, always)
    core = bench.open()
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    drafting.engine.fail_at = 3
    failing = bench.group(0, [1, 2, 3], params)
    core.add(failing)
    with pytest.raises(RuntimeError, match="the device is gone"):
        finish(core)
    assert failing.finished
    drafting.engine.fail_at = None
    (group,) = bench.answer([([4, 5], params)])
    assert group.generations[0].output_token_ids == bench.engine.continue_greedily([4, 5], 12)
    core.close()
    assert drafting.engine.closed == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_after_a_failure_a_draft_relies_on_nothing_that_it_had_computed(
    null_engine: Any, always: Any, layout: str
) -> None:
    bench = Bench(null_engine, layout, max_context=128)
    drafting = Drafting(null_engine, layout, max_context=128)
    bench.speculate(drafting.proposer, always)
    core = bench.open()
    asked = [(STEMS[0] * 2, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))]
    bench.answer(asked)
    bench.engine.fail_at = len(bench.engine.ran) + 3
    core.add(bench.group(0, *asked[0]))
    with pytest.raises(RuntimeError, match="the device is gone"):
        finish(core)
    drafting.engine.pool[:] = -1  # lost with the device: that it is used again would be an error
    bench.engine.fail_at, before = None, drafting.engine.computed
    (group,) = bench.answer(asked)
    wanted = bench.engine.continue_greedily(asked[0][0], 12)
    assert group.generations[0].output_token_ids == wanted
    assert drafting.engine.computed >= before + 60


def test_a_draft_forgets_with_its_target(null_engine: Any, always: Any) -> None:
    bench = Bench(null_engine, "paged", max_context=128)
    drafting = Drafting(null_engine, "paged", max_context=128)
    bench.speculate(drafting.proposer, always)
    core = bench.open()
    asked = [(STEMS[0] * 2, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))]
    computed = []
    for _ in range(2):
        bench.answer(asked)
        computed.append(drafting.engine.computed)
    core.reset_prefix_cache()
    bench.answer(asked)
    assert drafting.engine.computed - computed[1] == computed[0]
    assert computed[1] < 2 * computed[0] - 50, "the prompt was taken over"


def test_the_distribution_is_that_of_the_logits(null_engine: Any, always: Any, oracle: Any) -> None:
    """Chi-square of second tokens that were drafted, sampled without a seed."""
    bench = Bench(null_engine, "paged", vocab_size=6, max_batch=4)
    engine = bench.engine
    bench.speculate(oracle(engine.continue_greedily, 3, 6), always)
    bench.open()
    draws, prompt = 1200, [1, 2]
    params = SamplingParams(temperature=0.5, max_tokens=3, ignore_eos=True)
    counts = np.zeros((6, 6))
    info = bench.core.describe()
    for number in range(draws):
        sampler = Sampler(params, info.vocab_size, (), prompt, None)
        request = Request(number, None, tuple(prompt), params)
        generation = Generation(request, sampler, max_context=info.max_context)
        bench.core.add(RequestGroup([generation]))
        while bench.core.busy:
            bench.core.step()
        first, second, _ = generation.output_token_ids
        counts[first, second] += 1
    expected = np.zeros((6, 6))
    start = softmax(engine.logits(np.array(prompt)) / 0.5)
    for first in range(6):
        after = softmax(engine.logits(np.array([*prompt, first])) / 0.5)
        expected[first] = draws * start[first] * after
    assert bench.stats.num_accepted_tokens > 100
    assert bench.stats.num_draft_tokens > 2 * bench.stats.num_accepted_tokens
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 80, "35 degrees of freedom: above 80 once in 40,000 runs"


def softmax(values: Any) -> Any:
    weights = np.exp(values - values.max())
    return weights / weights.sum()
