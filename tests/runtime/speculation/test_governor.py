"""When drafting pays, by the measured times alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from enginewright.runtime.speculation.governor import FIRST_PAUSE, SHARE, Acceptance, Governor
from enginewright.runtime.speculation.step_times import ENOUGH, FRESH, StepTimes

PLAIN = 1.0
Cost = Callable[[int], float]


def linear(share: float) -> Cost:
    """A step costs 1, and ``share`` for each position beyond the first."""
    return lambda positions: PLAIN + share * (positions - 1)


class Row:
    """One request on a simulated engine: drafted tokens are right with probability ``rate``."""

    def __init__(
        self, cost: Cost, rate: Callable[[int], float], *, costless: bool, each: float = 0.0
    ) -> None:
        self.governor = Governor(costless)
        self.cost, self.rate, self.each = cost, rate, each
        self.random = random.Random(3)
        self.tokens, self.seconds, self.widths = 0, 0.0, list[int]()

    def run(self, tokens: int, most: int = 5) -> float:
        """How long it took, compared with plain steps."""
        while self.tokens < tokens:
            self.step(most)
        return self.seconds / (self.tokens * self.cost(1))

    def step(self, most: int) -> None:
        count = self.governor.choose({0: most}, [0], self.each).get(0, 0)
        right = 0
        while right < count and self.random.random() < self.rate(self.tokens):
            right += 1
        if count:
            self.governor.spent([0], self.each * count)
        elif self.governor.costless:
            self.governor.saw(0, self.random.random() < self.rate(self.tokens))
        seconds = self.cost(count + 1)
        self.governor.ran([0], count + 1, seconds, {0: (count, right)} if count else {})
        self.seconds += seconds + self.each * count
        self.tokens += 1 + right
        self.widths.append(count)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize(("costless", "each"), [(True, 0.0), (False, 0.1), (False, 0.4)])
def test_never_more_than_five_percent_are_lost(
    share: float, rate: float, costless: bool, each: float
) -> None:
    row = Row(linear(share), lambda at: rate, costless=costless, each=each)
    assert row.run(200) < 1.05


@pytest.mark.parametrize(("share", "rate"), [(0.3, 0.2), (0.3, 0.4), (0.5, 0.3), (0.5, 0.5)])
def test_nor_where_times_are_noisy(share: float, rate: float) -> None:
    plain, spent = linear(share), 0.0
    for seed in range(20):
        noise = random.Random(seed)

        def measured(positions: int, noise: random.Random = noise) -> float:
            nonlocal spent
            spent += plain(positions)
            return plain(positions) * noise.lognormvariate(0, 0.4)

        row = Row(measured, lambda at: rate, costless=True)
        row.random = random.Random(seed)
        while row.tokens < 160:
            row.step(7)
        spent -= row.tokens
    assert spent / (20 * 160) < 0.05


@pytest.mark.parametrize(("share", "gain"), [(0.02, 4.0), (0.3, 2.0), (0.5, 1.4)])
def test_what_repeats_is_drafted_as_far_as_it_pays(share: float, gain: float) -> None:
    row = Row(linear(share), lambda at: 0.98, costless=True)
    assert row.run(200) < 1 / gain
    assert max(row.widths) == 5


def test_where_a_token_more_costs_a_step_nothing_is_drafted_but_to_find_out() -> None:
    row = Row(linear(1.0), lambda at: 0.9, costless=True)
    row.run(FRESH)
    assert sum(count > 0 for count in row.widths) < 6


def test_what_costs_of_two_positions_says_nothing_of_four() -> None:
    steps: Cost = lambda positions: 1.0 if positions == 1 else 2.0  # noqa: E731
    row = Row(steps, lambda at: 0.98, costless=True)
    assert row.run(200, most=7) < 0.4


def test_a_shorter_draft_is_chosen_where_only_that_pays() -> None:
    steep: Cost = lambda positions: 1.0 if positions <= 3 else 6.0  # noqa: E731
    row = Row(steep, lambda at: 0.95, costless=True)
    row.run(300)
    assert sum(0 < count < 3 for count in row.widths[-50:]) > 45


@pytest.mark.parametrize(("costless", "each"), [(True, 0.0), (False, 0.05)])
def test_text_that_begins_to_repeat_is_noticed(costless: bool, each: float) -> None:
    row = Row(linear(0.2), lambda at: 0.0 if at < 150 else 0.98, costless=costless, each=each)
    assert row.run(150) < 1.05
    before = row.seconds
    row.run(450)
    assert row.seconds - before < 0.7 * 300


def test_it_is_tried_again_ever_later() -> None:
    row = Row(linear(0.05), lambda at: 0.0, costless=False, each=0.2)
    row.run(1200)
    tried = [at for at, count in enumerate(row.widths) if count]
    assert 3 < len(tried) < 60
    assert max(tried) > 300, "and never given up"
    gaps = [after - before for before, after in pairwise(tried)]
    assert max(gaps[-3:]) > 3 * max(gaps[:6])


def test_nothing_is_drafted_before_plain_steps_were_measured() -> None:
    governor = Governor(costless=False)
    for _ in range(ENOUGH):
        assert governor.choose({0: 5}, [0]) == {}
        governor.ran([0], 1, PLAIN, {})
    assert governor.choose({0: 5}, [0]) == {0: 1}, "first a short one, to learn what it costs"


def test_one_row_that_repeats_does_not_make_a_batch_wide() -> None:
    governor = Governor(costless=True)
    rows = range(8)
    for _ in range(4):
        governor.ran(rows, 1, 8.0, {})
        governor.ran(rows, 6, 48.0, {})
        governor.ran(rows, 2, 16.0, {})
    for _ in range(9):
        governor.saw(0, True)
    assert governor.choose(dict.fromkeys(rows, 5), rows) == {}, "it pays seven others' padding"
    for row in rows:
        for _ in range(9):
            governor.saw(row, True)
    cheap = Governor(costless=True)
    for row in rows:
        for _ in range(9):
            cheap.saw(row, row < 4)
    for _ in range(4):
        cheap.ran(rows, 1, 8.0, {})
        cheap.ran(rows, 6, 12.0, {})
    assert set(cheap.choose(dict.fromkeys(rows, 5), rows)) >= {0, 1, 2, 3}


def test_a_row_pays_its_losses_from_its_own_account() -> None:
    governor = Governor(costless=False)
    for _ in range(20):
        governor.ran([0], 1, PLAIN, {})
    for _ in range(3):
        governor.ran([0], 6, 4.0, {0: (5, 0)})
        for _ in range(9):
            governor.ran([1], 1, PLAIN, {})
    assert governor.choose({0: 5}, [0]) == {}
    assert governor.choose({1: 5}, [1]) != {}, "another has lost nothing"
    governor.retain({1})
    assert governor.choose({0: 5}, [0]) != {}, "a row of the same number begins anew"


def test_what_one_row_of_a_batch_gains_does_not_pay_for_all() -> None:
    """A step of eight takes 1.75 times one of four, and gives five tokens in place of four."""
    governor = Governor(costless=True)
    rows = range(4)
    for _ in range(ENOUGH):
        governor.ran(rows, 1, 4.0, {})
    for _ in range(3):
        governor.ran(rows, 2, 7.0, {row: (1, int(row == 0)) for row in rows})
    for row in rows:
        for _ in range(20):
            governor.saw(row, True)
    assert governor.choose(dict.fromkeys(rows, 1), rows) == {}, "each has lost more than a step"
    governor.retain(())
    for row in rows:
        for _ in range(20):
            governor.saw(row, True)
    assert governor.choose(dict.fromkeys(rows, 1), rows) == dict.fromkeys(rows, 1)


def seasoned(cost: Cost, right: int, wrong: int, *, costless: bool = True) -> Governor:
    """Knows what steps cost, and has seen tokens of row 0."""
    governor = Governor(costless)
    for positions in (2, 3, 4, 5, 6, 1):
        for _ in range(ENOUGH):
            governor.ran([1], positions, cost(positions), {})
    for each in [True] * right + [False] * wrong:
        governor.saw(0, each)
    return governor


def test_of_all_drafts_that_pay_the_best_is_chosen() -> None:
    governor = seasoned(linear(0.1), 0, 0)
    governor._account(0).acceptance = Acceptance(1.0, 2.0)
    assert governor.choose({0: 5}, [0]) == {0: 2}, "1.75 tokens in 1.2; of 5, 1.97 in 1.5"


def test_every_drafted_token_has_its_price() -> None:
    governor = seasoned(lambda positions: PLAIN, 20, 0, costless=False)
    assert governor.choose({0: 5}, [0], 0.1) == {0: 5}
    assert governor.choose({0: 5}, [0], 0.8) == {0: 1}, "a second one could cost too much"
    assert governor.choose({0: 5}, [0], 1.2) == {}


def test_a_wider_step_is_not_taken_to_be_faster() -> None:
    governor = seasoned(lambda positions: PLAIN if positions == 1 else 0.5 * PLAIN, 0, 0)
    governor._account(0).acceptance = Acceptance(0.02, 1.0)
    assert governor.choose({0: 5}, [0]) == {}


def test_what_could_be_lost_next_is_within_the_share() -> None:
    governor = seasoned(lambda positions: PLAIN if positions == 1 else 1.5 * PLAIN, 20, 0)
    governor._account(0).saved = -0.4 * PLAIN
    assert governor.choose({0: 5}, [0]) == {0: 5}
    governor._account(0).saved = -0.6 * PLAIN
    assert governor.choose({0: 5}, [0]) == {}


def test_pauses_are_of_8_steps_then_16_and_short_again_after_a_gain() -> None:
    governor = seasoned(linear(0.2), 0, 40, costless=False)

    def until_tried() -> int:
        for steps in range(100):
            if governor.choose({0: 5}, [0]):
                for _ in range(40):
                    governor.saw(0, False)
                return steps
        raise AssertionError("never")

    assert [until_tried() for _ in range(3)] == [8, 16, 32]
    governor.ran([0], 6, 2.0, {0: (5, 5)})
    for _ in range(40):
        governor.saw(0, False)
    assert until_tried() == 8


def test_who_is_drafted_does_not_wait() -> None:
    governor = seasoned(linear(0.1), 20, 0, costless=False)
    for _ in range(3 * FIRST_PAUSE):
        assert governor.choose({0: 5}, [0]) == {0: 5}
    assert governor._account(0).waited == 0


def test_what_was_seen_of_a_costless_draft_is_not_forgotten_in_a_pause() -> None:
    governor = seasoned(linear(0.1), 0, 5)
    seen = governor._account(0).acceptance.seen
    for _ in range(3 * FIRST_PAUSE):
        assert governor.choose({0: 5}, [0]) == {}
    assert governor._account(0).acceptance.seen == seen


def test_tokens_after_the_first_wrong_one_say_nothing() -> None:
    governor = seasoned(linear(0.1), 0, 0)
    wanted = Acceptance(0.0, 1.0)
    for right in (True, True, False):
        wanted.note(right)
    governor.ran([0], 6, 1.5, {0: (5, 2)})
    assert governor._account(0).acceptance == wanted


def test_times_are_medians_of_what_ran_lately() -> None:
    times = StepTimes()
    for seconds in (1.0, 9.0, 1.2):
        times.note(1, 1, seconds)
    assert times.plain(1) == 1.2
    assert times.plain(2) is None
    assert times.expected(2) == 1.2, "as much as the only one"
    assert times.expected(3) is None
    times.note(1, 2, 1.7)
    assert times.expected(4) == 1.7, "as much as the largest"
    times.note(1, 4, 2.5)
    assert times.expected(3) == pytest.approx(2.1)
    assert times.expected(9) is None
    for _ in range(FRESH):
        times.note(1, 2, 5.0)
    assert times.plain(1) is None, "too old"
    assert times.expected(3) == 5.0
    assert set(times._taken) == {2}, "and no longer kept"


def test_a_wide_step_of_one_row_is_no_plain_step_of_many() -> None:
    """Its past may be long, and theirs short: what they lose would count as saved."""
    governor = Governor(costless=True)
    for _ in range(ENOUGH):
        governor.ran(range(8), 1, 1.0, {})
    for _ in range(20):
        governor.ran([9], 8, 9.0, {})
    assert governor.times.plain(8) == 1.0
    governor.ran(range(8), 2, 1.8, {0: (1, 0)})
    assert governor._accounts[0].saved == pytest.approx(-0.8)


def test_after_rows_have_joined_plain_steps_are_measured_anew() -> None:
    governor = seasoned(linear(0.1), 20, 0)
    assert governor.choose({0: 5}, [0]) == {0: 5}
    governor.joined()
    assert governor.choose({0: 5}, [0]) == {}
    for _ in range(ENOUGH):
        governor.ran([1], 1, PLAIN, {})
    assert governor.choose({0: 5}, [0]) == {0: 5}


def test_who_waits_for_anothers_account_has_not_failed() -> None:
    governor = seasoned(linear(0.1), 20, 0, costless=False)
    for positions in (2, 4, 6, 8):
        for _ in range(ENOUGH):
            governor.ran([1, 2], positions // 2, PLAIN * positions, {})
    governor._account(2).saved = -100.0
    for _ in range(3 * FIRST_PAUSE):
        assert governor.choose({0: 5}, [0, 2]) == {}
    assert governor._account(0).waited == 0
    assert governor._account(0).pause == FIRST_PAUSE


def test_the_share_leaves_room_for_one_step() -> None:
    assert SHARE < 0.05
