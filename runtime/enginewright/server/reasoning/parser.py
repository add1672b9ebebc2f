"""Splits what a model thought from what it answers, as the text comes.

A parser is made for one output; the full answer is the same parser, fed once and finished. Its
content is what the parser of tool calls is fed. Names: `reasoning/formats.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from enginewright.server.markers import Markers

Stage = Literal["none", "open", "closed"]


class Split(NamedTuple):
    """What became certain of the two; either may be empty."""

    reasoning: str = ""
    content: str = ""


@dataclass(frozen=True)
class ReasoningFormat:
    """How a model marks its thoughts; several ``begins`` or ``ends`` are spellings of one mark.

    ``always``: it thinks first, although neither the prompt nor the output shows where it begins.
    """

    begins: tuple[str, ...]
    ends: tuple[str, ...]
    always: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """All texts that the parser looks for."""
        return (*self.begins, *self.ends)

    def opened_by(self, prompt: str) -> bool:
        """Whether the prompt ends by beginning the thoughts, as many templates do."""
        return prompt.rstrip().endswith(self.begins)


class ReasoningParser:
    """One output's thoughts and answer.

    The output begins with thoughts where its prompt opened them, where the format says ``always``,
    or where it begins with the mark itself. White space beside a mark is dropped. Thoughts that
    never end are thoughts to the last; after the answer has begun, nothing is a mark.
    """

    def __init__(self, form: ReasoningFormat, prompt: str = "") -> None:
        self._form, self._prompt = form, prompt
        self._begins, self._ends = form.begins, Markers(form.ends)
        self._opened = form.always or form.opened_by(prompt)
        self._state = self._start
        self._held = ""
        self._thought = False
        self.stage: Stage = "none"
        """How far the thoughts are; none: there were none yet."""

    def again(self) -> ReasoningParser:
        """One for the same output, from its beginning."""
        return ReasoningParser(self._form, self._prompt)

    def feed(self, text: str) -> Split:
        """Take in the next piece of the output."""
        self._held += text
        return self._state(False)

    def finish(self) -> Split:
        """What was held back, now that nothing more comes."""
        return self._state(True)

    def _start(self, ended: bool) -> Split:
        """Before it is known whether the output begins with the mark."""
        text = self._held.lstrip()
        mark = next((each for each in self._begins if text.startswith(each)), None)
        if mark is None and not ended and any(each.startswith(text) for each in self._begins):
            return Split()
        if mark is None and not self._opened:
            self._state = self._answer
        else:
            self._held = text.removeprefix(mark or "")
            self._state, self.stage = self._think, "open"
        return self._state(ended)

    def _think(self, ended: bool) -> Split:
        text = self._held if self._thought else self._held.lstrip()
        end = self._ends.search(text)
        if end is not None:
            self._held = text[end.end() :]
            self._state, self.stage = self._before_answer, "closed"
            return Split(text[: end.start()].rstrip(), self._state(ended).content)
        at = len(text) - (0 if ended else self._ends.unsettled(text))
        self._held = text[at:]
        self._thought = self._thought or at > 0
        return Split(text[:at])

    def _before_answer(self, ended: bool) -> Split:
        self._held = self._held.lstrip()
        if not self._held:
            return Split()
        self._state = self._answer
        return self._state(ended)

    def _answer(self, ended: bool) -> Split:
        content, self._held = self._held, ""
        return Split("", content)
