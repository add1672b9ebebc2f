"""A job: what was asked for at once, run by the core as one row or more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.engine import RowLogits
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.scheduling.row import Row
from enginewright.runtime.scheduling.scheduler import Scheduler

Logits = NDArray[np.float32]


class Job(ABC):
    """Rows that begin with one prompt; what they need of each other is for the job to settle."""

    @property
    @abstractmethod
    def row_ids(self) -> Sequence[int]:
        """Of all rows that it may ever have."""

    @abstractmethod
    def first_row(self) -> Row:
        """The row that computes the prompt; called once."""

    @abstractmethod
    def accept(self, scheduler: Scheduler, logits: Mapping[int, RowLogits]) -> None:
        """Take the logits [V] after the last token of each row that is ready, and go on.

        Each of these rows then has a token more, or has left the scheduler; there may be none, if
        all that were ready had drafts. What goes wrong with this job's input ends this job, without
        an exception.
        """

    @abstractmethod
    def abort(self, scheduler: Scheduler) -> None:
        """End what still runs, as it is; its rows leave the scheduler."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing more comes."""

    @property
    @abstractmethod
    def failed(self) -> bool:
        """Whether nothing of it came to a good end."""

    @property
    @abstractmethod
    def error(self) -> EnginewrightError | None:
        """Why it failed, or a part of it did."""

    def draft_limit(self, row: int) -> int:
        """How many tokens may be drafted after the row's last one: 0, if the job takes none."""
        return 0

    def possible(self, row: int, draft: list[int]) -> list[int]:
        """The leading tokens of a draft after which others could still come, by what is asked."""
        raise AssertionError("no row of this job takes a draft")

    def verify(
        self, scheduler: Scheduler, row: int, draft: Sequence[int], logits: Sequence[RowLogits]
    ) -> int:
        """As ``accept``, of one row with a draft; returns how many of its tokens were right.

        The k + 1 logits are those after the row's last token and after each of the k drafted.
        The row then has the tokens that were right and one more, or it has ended: it leaves the
        scheduler in the ``accept`` that follows, when the drafts of all rows are verified.
        """
        raise AssertionError("no row of this job takes a draft")

    @property
    def scored_row(self) -> int | None:
        """The row whose prompt is to be scored: ``take_prompt`` gets all its logits."""
        return None

    def take_prompt(self, start: int, logits: Logits) -> None:
        """The logits [S, V] after the tokens of the scored row's prompt from ``start`` on."""
        raise AssertionError("no prompt of this job is scored")
