"""N-grams are looked up as a plain search of the tokens finds them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enginewright.runtime.speculation.ngram import NgramProposer
from enginewright.runtime.speculation.proposer import Wanted


def propose(proposer: NgramProposer, tokens: list[int], limit: int, row: int = 0) -> list[int]:
    (draft,) = proposer.propose([Wanted(row, tokens, limit)])
    return draft


def searched(tokens: list[int], longest: int, shortest: int, limit: int) -> list[int]:
    """From the definition: the longest run first, of several the last one."""
    for size in range(longest, shortest - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                grown = list(tokens)
                for at in range(limit):
                    grown.append(grown[end + at])
                return grown[len(tokens) :]
    return []


@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    first=st.integers(1, 20),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)).map(sorted),
    limit=st.integers(1, 9),
)
def test_drafts_are_those_of_a_search(
    tokens: list[int], first: int, sizes: list[int], limit: int
) -> None:
    shortest, longest = sizes
    proposer = NgramProposer(longest, shortest)
    growing = tokens[:first]
    while True:  # the index is asked after every token, as a row grows
        assert propose(proposer, growing, limit) == searched(growing, longest, shortest, limit)
        if len(growing) == len(tokens):
            return
        growing.append(tokens[len(growing)])


def test_the_longest_match_comes_first_and_then_the_last_one() -> None:
    proposer = NgramProposer(3, 1)
    assert propose(proposer, [1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], 2) == [7, 9]
    assert propose(proposer, [5, 3, 8, 6, 3, 9, 3], 1, row=1) == [9]
    assert propose(proposer, [1, 2, 3], 4, row=2) == []


def test_a_match_that_reaches_the_end_goes_on_with_itself() -> None:
    assert propose(NgramProposer(5, 2), [4, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]


def test_rows_do_not_see_each_other_and_are_forgotten() -> None:
    proposer = NgramProposer(2, 2)
    assert propose(proposer, [1, 2, 3, 1, 2], 1, row=1) == [3]
    assert propose(proposer, [7, 1, 2], 1, row=2) == []
    proposer.retain({2})
    assert propose(proposer, [1, 2, 4, 1, 2], 1, row=1) == [4], "a new row of an old number"
