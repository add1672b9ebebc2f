"""The search of one prompt: rows of logits in, the beams to go on with out. Pure logic.

k live beams, V vocabulary.

| tensor | shape  | dtype   | meaning                                                            |
|--------|--------|---------|--------------------------------------------------------------------|
| logits | [k, V] | float32 | raw logits after each live beam, in the order of the last branches |
|        |        |         | (an array, or a list of rows)                                      |
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from enginewright.runtime.beam_search.candidates import Candidates, likeliest
from enginewright.runtime.beam_search.hypotheses import BestHypotheses, Ending, Hypothesis, Link
from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.beam_search.rules import rules_of
from enginewright.runtime.errors import RequestError, SamplingParamsError
from enginewright.runtime.requests.outputs import FinishReason
from enginewright.runtime.sampling.processors import Ids, Logits
from enginewright.runtime.scheduling.beam_rows import Branch

Real = np.float32 | np.float64


class StopText(Protocol):
    """The text of a beam, watched for stop strings: see IncrementalDetokenizer."""

    @property
    def stop_reason(self) -> str | None: ...

    def push(self, token_id: int) -> object: ...

    def finish(self) -> object: ...

    def fork(self) -> Self:
        """A copy that goes its own way."""
        ...


class Constraint(Protocol):
    """Which tokens a beam may go on with."""

    def allowed(self) -> Ids:
        """Ascending ids, EOS among them where the beam may end; where there are none, it ends."""
        ...

    def advanced(self, token_id: int) -> Self:
        """The constraint after the token; this one stays as it is."""
        ...


@dataclass(frozen=True, slots=True)
class _Beam:
    """A live beam."""

    last: Link | None
    cumulative: Real
    text: StopText | None
    constraint: Constraint | None


class BeamSearch:
    """A beam search that is driven from outside.

    ``step`` takes the logits of the prompt's last position first, then those of the beams that
    it returned last. ``room``: tokens that the context has left. ``text`` and ``constraint``:
    those of the prompt; without a ``text``, no stop strings.
    """

    def __init__(
        self,
        params: BeamSearchParams,
        *,
        vocab_size: int,
        eos_token_ids: Collection[int],
        room: int,
        text: StopText | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        assert room > 0
        params.check_vocabulary(vocab_size)
        self._params = params
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self._ends = np.array(sorted({*eos_token_ids, *params.stop_ids}), np.int64)
        # Where EOS ends nothing, it is no part of a form either.
        self._mute = np.array(sorted(set(eos_token_ids) - self._eos), np.int64)
        self._allowed = None
        if params.allowed_token_ids is not None:
            self._allowed = np.array(sorted(params.allowed_token_ids), np.int64)
        self._check_room(vocab_size)
        self._rules = rules_of(params, len(self._eos.union(params.stop_ids)))
        self._limit = min(params.max_tokens, room)
        self._generated = 0
        self._penalty = self._rules.real(1.0)
        self._ended = BestHypotheses(params.beam_width)
        self._live = [_Beam(None, self._rules.real(0.0), text, constraint)]

    @property
    def finished(self) -> bool:
        """Whether no beam goes on."""
        return not self._live

    @property
    def max_tokens(self) -> int:
        """Most tokens that a beam can have: ``max_tokens``, or fewer where the context ends."""
        return self._limit

    def step(self, logits: Sequence[Logits]) -> list[Branch]:
        """Choose the beams that go on, likeliest first; none when the search is over."""
        assert len(logits) == len(self._live)
        offers = [self._offer(beam, row) for beam, row in zip(self._live, logits, strict=True)]
        self._generated += 1
        self._penalty = self._penalty_of(self._generated)
        chosen = self._choose(offers)
        if not chosen and not self._ended:
            raise RequestError(
                "no token can be chosen: allowed_token_ids, structured_outputs and min_tokens "
                "together leave none"
            )
        self._live = [beam for _, beam in chosen]
        if self._settled():
            self._live = []
        return [branch for branch, _ in chosen] if self._live else []

    def hypotheses(self, unfinished: FinishReason | None = None) -> list[Hypothesis]:
        """The best beams, best first; ``unfinished``: the finish reason of those that still run."""
        best = BestHypotheses(self._params.beam_width)
        for hypothesis in self._ended:
            best.add(hypothesis)
        for beam in self._live:
            if beam.last is not None:
                best.add(self._hypothesis(beam.last, beam.cumulative, Ending(unfinished)))
        return list(best)

    def _offer(self, beam: _Beam, row: Logits) -> Candidates:
        """What may follow the beam; it ends here if its form is complete."""
        allowed = self._allowed
        if beam.constraint is not None:
            form = beam.constraint.allowed()
            form = form[~np.isin(form, self._mute)]
            if not form.size and beam.last is not None:
                self._end(beam.last, beam.cumulative, Ending("stop"))
            allowed = form if allowed is None else np.intersect1d(allowed, form)
        early = self._generated < self._params.min_tokens
        barred = self._ends if early else self._ends[:0]
        return likeliest(row, self._rules.candidates, allowed, barred)

    def _choose(self, offers: Sequence[Candidates]) -> list[tuple[Branch, _Beam]]:
        """The likeliest continuations that go on; those that end count among the ended."""
        chosen: list[tuple[Branch, _Beam]] = []
        counted = self._rules.counted
        for place, (parent, at, token, cumulative) in enumerate(self._pool(offers)):
            counts = counted is None or place < counted
            full = len(chosen) == self._params.beam_width
            if full and not (counts and self._score(cumulative) > self._ended.worst):
                break
            beam = self._live[parent]
            text, ending = self._grown(beam.text, token)
            if ending is None and not full:
                form = beam.constraint
                form = None if form is None else form.advanced(token)
                grown = _Beam(Link(beam.last, offers[parent], at), cumulative, text, form)
                chosen.append((Branch(parent, token), grown))
            elif ending is not None and counts:
                self._end(Link(beam.last, offers[parent], at), cumulative, ending)
        return chosen

    def _pool(self, offers: Sequence[Candidates]) -> Iterator[tuple[int, int, int, Real]]:
        """Continuations of all beams, likeliest first; of equals, those of the first beams.

        Each is a beam, a place among its candidates, the token there, and the sum with it.
        """
        pairs = zip(self._live, offers, strict=True)
        sums = np.concatenate([beam.cumulative + offer.logprobs for beam, offer in pairs])
        sizes = [offer.tokens.size for offer in offers]
        order = np.argsort(-sums, kind="stable")[: self._rules.pool]
        parents = np.repeat(np.arange(len(offers)), sizes)[order]
        places = order - np.cumsum([0, *sizes])[parents]
        tokens = np.concatenate([offer.tokens for offer in offers])[order]
        return zip(parents.tolist(), places.tolist(), tokens.tolist(), sums[order], strict=True)

    def _grown(self, text: StopText | None, token: int) -> tuple[StopText | None, Ending | None]:
        """The text with the token, and whether the beam ends with it."""
        if token in self._eos:
            return text, Ending("stop")
        if token in self._params.stop_ids:
            return text, Ending("stop", token)
        last = self._generated == self._limit
        if text is not None:
            text = text.fork()
            text.push(token)
            if last and text.stop_reason is None:
                text.finish()
            if text.stop_reason is not None:
                return text, Ending("stop", text.stop_reason)
        return text, Ending("length") if last else None

    def _end(self, last: Link, cumulative: Real, ending: Ending) -> None:
        self._ended.add(self._hypothesis(last, cumulative, ending))

    def _hypothesis(self, last: Link, cumulative: Real, ending: Ending) -> Hypothesis:
        return Hypothesis(last, float(cumulative), self._score(cumulative), ending)

    def _score(self, cumulative: Real) -> float:
        """Of a beam of the present length."""
        return float(cumulative / self._penalty)

    def _penalty_of(self, length: int) -> Real:
        with np.errstate(over="ignore"):  # a penalty beyond all numbers: all scores are 0
            return self._rules.real(length**self._params.length_penalty)

    def _settled(self) -> bool:
        """Whether the ended beams are the result, whatever the running ones would become."""
        early = self._rules.early_stopping
        if not self._live or not self._ended.full:
            return False
        if early is True:
            return True
        # No sum grows. With a penalty above 0 the longest beam can score best, else the next.
        longest = early == "never" and self._params.length_penalty > 0.0
        penalty = self._penalty_of(self._limit) if longest else self._penalty
        return float(self._live[0].cumulative / penalty) <= self._ended.worst

    def _check_room(self, vocab_size: int) -> None:
        """Some token must be left that ends no beam before ``min_tokens``."""
        if not self._params.min_tokens:
            return
        possible = np.arange(vocab_size) if self._allowed is None else self._allowed
        if np.isin(possible, self._ends).all():
            raise SamplingParamsError(
                f"min_tokens={self._params.min_tokens} leaves no token to choose: stop_token_ids "
                f"and the model's EOS cover the whole vocabulary, or all allowed_token_ids"
            )
