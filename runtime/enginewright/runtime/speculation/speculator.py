"""Speculation as the core sees it: drafts for the rows of a step, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from enginewright.runtime.speculation.governor import Governor
from enginewright.runtime.speculation.proposer import Proposer, Wanted
from enginewright.runtime.speculation.stats import SpeculationStats

Drafts = dict[int, list[int]]
"""Of each row that has one."""


class Speculator:
    """A proposer under a governor. ``most``: tokens drafted for a row in one step at most."""

    def __init__(self, proposer: Proposer, most: int, governor: Governor | None = None) -> None:
        assert most > 0
        self.stats = SpeculationStats()
        self._proposer = proposer
        self._most = most
        self._governor = governor or Governor(proposer.costless)
        self._unchecked: dict[int, tuple[int, int]] = {}
        """Of a row, a token that was proposed and not checked, and the place that it was for."""

    @property
    def kv_bytes_per_token(self) -> int:
        """What a token of a row takes in the cache of what drafts; 0 without one."""
        return self._proposer.kv_bytes_per_token

    def draft(
        self,
        wanted: Sequence[Wanted],
        rows: Collection[int],
        possible: Callable[[int, list[int]], list[int]],
    ) -> Drafts:
        """Drafts for those of the step's ``rows`` that want one, or for some of them.

        ``possible``: the leading tokens of a row's draft that may come at all.
        """
        asked = [each._replace(limit=min(each.limit, self._most)) for each in wanted]
        self._look_back(asked)
        if not self._proposer.costless:
            asked = self._worthwhile(asked, rows)
        proposed = self._proposer.propose(asked) if asked else []
        drafts = {
            each.row: draft
            for each, proposal in zip(asked, proposed, strict=True)
            if (draft := possible(each.row, proposal))
        }
        if not self._proposer.costless:
            longest = max(map(len, proposed), default=0)
            self._governor.spent(rows, longest * self._proposer.seconds)
            return drafts
        lengths = {row: len(draft) for row, draft in drafts.items()}
        chosen = self._governor.choose(lengths, rows)
        for each in asked:
            if each.row in drafts and each.row not in chosen:
                self._unchecked[each.row] = len(each.tokens), drafts[each.row][0]
        return {row: drafts[row][:count] for row, count in chosen.items()}

    def ran(
        self,
        rows: Collection[int],
        width: int,
        seconds: float,
        drafts: Mapping[int, tuple[int, int]],
    ) -> None:
        """A step of decoding rows ran; of rows with a draft, its tokens and those accepted."""
        self._governor.ran(rows, width, seconds, drafts)
        for drafted, accepted in drafts.values():
            self.stats.count(drafted, accepted)

    def joined(self) -> None:
        """Rows have joined those that decode."""
        self._governor.joined()

    def retain(self, rows: Collection[int]) -> None:
        """Forget all rows but these."""
        self._proposer.retain(rows)
        self._governor.retain(rows)
        self._unchecked = {row: each for row, each in self._unchecked.items() if row in rows}

    def forget(self) -> None:
        """Keep nothing of what ended rows left behind."""
        self._proposer.forget()

    def reset(self) -> None:
        """Forget every row, after a step that failed."""
        self._proposer.reset()
        self.retain(())

    def close(self) -> None:
        """Free what drafts. Closing twice is allowed."""
        self._proposer.close()

    def _look_back(self, wanted: Sequence[Wanted]) -> None:
        for each in wanted:
            place, token = self._unchecked.pop(each.row, (len(each.tokens), 0))
            if place < len(each.tokens):
                self._governor.saw(each.row, each.tokens[place] == token)

    def _worthwhile(self, wanted: Sequence[Wanted], rows: Collection[int]) -> list[Wanted]:
        limits = {each.row: each.limit for each in wanted}
        chosen = self._governor.choose(limits, rows, self._proposer.seconds)
        return [each._replace(limit=chosen[each.row]) for each in wanted if each.row in chosen]
