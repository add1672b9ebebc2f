"""The speculator between a proposer and the real governor."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from enginewright.runtime.speculation.governor import Acceptance, Governor
from enginewright.runtime.speculation.ngram import NgramProposer
from enginewright.runtime.speculation.proposer import Proposer, Wanted
from enginewright.runtime.speculation.speculator import Drafts, Speculator

LOOP = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]


class Zeros(Proposer):
    """Has its price, and notes how much it was asked for."""

    costless = False
    seconds = 0.01

    def __init__(self) -> None:
        self.limits: list[int] = []

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        self.limits += [each.limit for each in wanted]
        return [[0] * each.limit for each in wanted]

    def retain(self, rows: Collection[int]) -> None:
        return


def opened(proposer: Proposer, widest: int = 6) -> tuple[Speculator, Governor]:
    """It knows what steps of one row cost: hardly more for more tokens."""
    governor = Governor(proposer.costless)
    for _ in range(3):
        for width in range(1, widest + 1):
            governor.ran([99], width, 1 + 0.01 * width, {})
    return Speculator(proposer, 5, governor), governor


def draft(speculator: Speculator, tokens: list[int], row: int = 0, limit: int = 9) -> Drafts:
    return speculator.draft([Wanted(row, tokens, limit)], [row], lambda row, tokens: tokens)


def begun() -> tuple[Speculator, Governor, list[int]]:
    """Row 0 goes on with its loop, until it is drafted."""
    speculator, governor = opened(NgramProposer(3, 1))
    tokens = list(LOOP)
    while not draft(speculator, tokens):
        tokens.append(len(tokens) % 4 + 1)
        assert len(tokens) < 20
    return speculator, governor, tokens


def test_what_is_proposed_and_not_checked_is_compared_with_what_comes() -> None:
    governor = Governor(costless=True)  # that has seen no step, and drafts nothing
    speculator = Speculator(NgramProposer(3, 1), 5, governor)
    tokens = list(LOOP)
    for token in (3, 4, 9):
        assert draft(speculator, tokens) == {}
        tokens.append(token)
    draft(speculator, tokens)
    wanted = Acceptance(0.0, 1.0)
    for right in (True, True, False):
        wanted.note(right)
    assert governor._accounts[0].acceptance == wanted


def test_a_token_counts_once() -> None:
    """One that a step checks is not looked back at, and one that did not come yet may still."""
    speculator, governor, tokens = begun()
    seen = governor._accounts[0].acceptance.seen
    tokens.append(9)
    draft(speculator, tokens)
    assert governor._accounts[0].acceptance.seen == seen
    speculator, governor = opened(NgramProposer(3, 1))
    for _ in range(3):
        draft(speculator, LOOP)
    assert governor._accounts[0].acceptance.seen == 1


@pytest.mark.parametrize("how", ["reset", "retain"])
def test_of_rows_that_have_gone_nothing_is_left(how: str) -> None:
    speculator, governor, _ = begun()
    draft(speculator, list(LOOP), row=1)
    assert 1 in speculator._unchecked
    if how == "reset":
        speculator.reset()
    else:
        speculator.retain([5])
    assert not governor._accounts
    draft(speculator, [8, 7, 8, 6, 5, 4, 3, 2, 1, 3, 3], row=1)
    assert governor._accounts[1].acceptance.seen == 1, "nothing to look back at"
    assert draft(speculator, [*LOOP, 3, 4, 1]) == {}, "nothing is known of its text"
    assert governor.times.plain(1) is not None, "but what steps cost"


def test_no_more_is_drafted_than_was_set_or_than_pays() -> None:
    speculator, governor = opened(Zeros())
    assert draft(speculator, [1], limit=9) == {0: [0] * 5}
    assert governor._accounts[0].saved == pytest.approx(-0.05)
    proposer = Zeros()
    speculator, governor = opened(proposer, widest=1)
    assert draft(speculator, [1]) == {0: [0]}, "a step of two is tried before wider ones"
    assert proposer.limits == [1]
    assert governor._accounts[0].saved == pytest.approx(-0.01)
