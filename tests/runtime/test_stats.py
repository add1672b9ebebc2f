"""How often a number fell between two bounds."""

from __future__ import annotations

from enginewright.runtime.stats import Tally


def test_a_number_counts_at_the_first_bound_that_holds_it() -> None:
    tally = Tally((1, 8, 16))
    for number in (1, 2, 8, 9, 16, 17, 400):
        tally.add(number)
    before = tally.read()
    tally.add(1)

    assert before.bounds == (1, 8, 16)
    assert before.counts == (1, 2, 2, 2)
    assert before.total == 453
    assert tally.read().counts == (2, 2, 2, 2)
