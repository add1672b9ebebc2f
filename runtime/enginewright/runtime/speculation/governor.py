"""Decides how many tokens a step drafts: as many as pay, none where none do. Pure logic.

For each row it keeps how often drafted tokens were right lately, and what speculation has saved the
row so far. A step drafts as many tokens a row as promise the most tokens a second, by the measured
times of steps, and only while each of its rows, drafted or not, can afford that all of them are
wrong: what a row has lost may not exceed ``SHARE`` of the time of its steps, and one plain step.
What is decided changes when tokens come, never which.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from enginewright.runtime.speculation.step_times import StepTimes

SHARE = 0.02
"""Of a row's time, what speculation may lose it at most, besides one plain step."""

MARGIN = 1.05
"""How many times faster a draft must promise to be: times are measured, and chance decides less."""

DECAY = 0.85
"""What an earlier drafted token counts for, compared with the one after it."""

FIRST_PAUSE, LAST_PAUSE = 8, 512
"""Steps until a row for which drafting did not pay is tried again, at first and at last."""


@dataclass
class Acceptance:
    """How often drafted tokens were right, the last ones counting most."""

    right: float
    seen: float

    @property
    def rate(self) -> float:
        return self.right / self.seen

    def note(self, right: bool) -> None:
        self.right = DECAY * self.right + right
        self.seen = DECAY * self.seen + 1

    def expected(self, drafted: int) -> float:
        """Tokens that will be accepted of so many: each only after those before it."""
        rate = self.rate
        return sum(rate**place for place in range(1, drafted + 1))


@dataclass
class Account:
    """Of one row: its acceptance; seconds of its steps, and of those what drafts have saved."""

    acceptance: Acceptance
    seconds: float = 0.0
    saved: float = 0.0
    pause: int = FIRST_PAUSE
    waited: int = 0

    def affords(self, loss: float, plain: float) -> bool:
        """Whether the row may lose so much more."""
        return self.saved - loss >= -(SHARE * self.seconds + plain)


@dataclass
class Governor:
    """``costless``: what a proposer says is known before it is decided, and even if it is not used.

    Then nothing is assumed of a new row before its proposals were seen to be right. Where a draft
    has its price, a row begins with the benefit of the doubt, and gets it again after a pause.
    """

    costless: bool
    times: StepTimes = field(default_factory=StepTimes)
    _accounts: dict[int, Account] = field(default_factory=dict)

    def choose(
        self, lengths: Mapping[int, int], rows: Collection[int], seconds_per_token: float = 0.0
    ) -> dict[int, int]:
        """How many of the tokens that rows could draft are to be drafted; rows with none left out.

        ``rows``: all of the step, those without a draft included. ``seconds_per_token``: what
        drafting adds for each token of the longest draft.
        """
        batch = len(rows)
        plain = self.times.plain(batch)
        if plain is None:
            return {}
        best, best_rate = {}, MARGIN * batch / plain
        waiting = set(lengths)
        for most in range(1, max(lengths.values(), default=0) + 1):
            step = self.times.expected(batch * (most + 1))
            if step is None:  # nothing near that size ran lately: first a shorter draft
                break
            seconds = max(step, plain) + most * seconds_per_token
            poor = {row for row in rows if not self._account(row).affords(seconds - plain, plain)}
            if poor:  # who has to wait for another's account has not failed itself
                waiting &= poor
                break
            chosen = {row: min(length, most) for row, length in lengths.items() if length}
            gained = sum(self._accounts[row].acceptance.expected(n) for row, n in chosen.items())
            if (batch + gained) / seconds > best_rate:
                best, best_rate = chosen, (batch + gained) / seconds
        if not self.costless:
            self._wait(waiting - best.keys())
        return best

    def joined(self) -> None:
        """Rows have joined those that decode: what plain steps take is measured anew."""
        self.times.forget_plain()

    def saw(self, row: int, right: bool) -> None:
        """A token that was proposed for the row, and not checked, was what came, or was not."""
        self._account(row).acceptance.note(right)

    def spent(self, rows: Collection[int], seconds: float) -> None:
        """These rows waited so long for their drafts."""
        for row in rows:
            self._account(row).saved -= seconds

    def ran(
        self,
        rows: Collection[int],
        width: int,
        seconds: float,
        drafts: Mapping[int, tuple[int, int]],
    ) -> None:
        """A step ran: of rows with a draft, how many tokens were drafted and how many accepted."""
        plain = self.times.plain(len(rows))
        self.times.note(len(rows), width, seconds)
        for row in rows:
            self._account(row).seconds += seconds
        if not drafts or plain is None:
            return
        for row in rows:
            account, (drafted, right) = self._accounts[row], drafts.get(row, (0, 0))
            saved = plain * (1 + right) - seconds
            account.saved += saved
            for place in range(min(right + 1, drafted)):
                account.acceptance.note(place < right)
            if saved > 0:
                account.pause = FIRST_PAUSE

    def retain(self, rows: Collection[int]) -> None:
        """Forget all rows but these."""
        self._accounts = {row: each for row, each in self._accounts.items() if row in rows}

    def _account(self, row: int) -> Account:
        if row not in self._accounts:
            self._accounts[row] = Account(self._unseen())
        return self._accounts[row]

    def _unseen(self) -> Acceptance:
        return Acceptance(0.0, 1.0) if self.costless else Acceptance(1.5, 2.0)

    def _wait(self, rows: Collection[int]) -> None:
        """A draft would not pay for these; after a pause they are given another chance."""
        for row in rows:
            account = self._account(row)
            account.waited += 1
            if account.waited >= account.pause:
                account.waited, account.pause = 0, min(2 * account.pause, LAST_PAUSE)
                account.acceptance = self._unseen()
