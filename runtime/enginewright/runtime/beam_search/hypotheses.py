"""Beams as chains of tokens, and the best of those that have ended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from enginewright.runtime.beam_search.candidates import Candidates
from enginewright.runtime.requests.outputs import FinishReason

CandidateScores = dict[int, tuple[float, int | None]]
"""Token id -> (log probability, rank from 1)."""


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A token of a beam: one of the candidates that its beam had. Beams share beginnings."""

    before: Link | None = field(repr=False)
    candidates: Candidates
    place: int

    @property
    def token(self) -> int:
        return int(self.candidates.tokens[self.place])

    def scores(self, count: int) -> CandidateScores:
        """The ``count`` likeliest tokens that could be chosen, and the one that was."""
        seen = self.candidates
        places = list(range(min(count, seen.tokens.size)))
        if self.place >= count:
            places.append(self.place)
        tokens, logprobs = seen.tokens[places].tolist(), seen.logprobs[places].tolist()
        ranks = [None] * len(places) if seen.ranks is None else seen.ranks[places].tolist()
        return dict(zip(tokens, zip(logprobs, ranks, strict=True), strict=True))


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a beam goes no further, in CompletionOutput's words; None: it does."""

    reason: FinishReason | None
    stop_reason: int | str | None = None


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A beam as a result; ``score``: its sum of log probabilities, length-penalised."""

    last: Link
    cumulative_logprob: float
    score: float
    ending: Ending

    @property
    def links(self) -> list[Link]:
        """Its tokens in order, the one that ended it included."""
        found = []
        link: Link | None = self.last
        while link is not None:
            found.append(link)
            link = link.before
        return found[::-1]

    @property
    def token_ids(self) -> list[int]:
        return [link.token for link in self.links]


class BestHypotheses:
    """The best few that were added, best first; of equals, those added first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[Hypothesis] = []

    @property
    def full(self) -> bool:
        return len(self._kept) == self._count

    @property
    def worst(self) -> float:
        """The score that a new one must beat."""
        return self._kept[-1].score if self.full else -math.inf

    def add(self, hypothesis: Hypothesis) -> None:
        self._kept.append(hypothesis)
        self._kept.sort(key=lambda each: -each.score)
        del self._kept[self._count :]

    def __iter__(self) -> Iterator[Hypothesis]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
