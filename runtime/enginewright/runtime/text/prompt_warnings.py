"""The linter at work in an LLM: findings are logged, each once in a process."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from enginewright.runtime.sampling.defaults import Defaults
from enginewright.runtime.text.linter import (
    Facts,
    Finding,
    lint_artifact,
    lint_defaults,
    lint_prompt,
)

logger = logging.getLogger(__name__)

_said: set[tuple[str, str]] = set()  # of the process: (name of the artifact, code)


class PromptWarnings:
    """Logs errors and warnings about one artifact and what it is given; notes it keeps quiet."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._log(lint_artifact(facts))

    def defaults(self, defaults: Defaults) -> None:
        """A call without sampling_params uses these."""
        self._log(lint_defaults(defaults))

    def prompt(self, text: str | None, ids: Sequence[int]) -> None:
        """A prompt that is about to run; the text is None where the caller gave ids."""
        self._log(lint_prompt(self._facts, text, ids))

    def _log(self, findings: Iterable[Finding]) -> None:
        name = self._facts.manifest.name
        for finding in findings:
            if finding.level == "note" or (name, finding.code) in _said:
                continue
            _said.add((name, finding.code))
            logger.warning("%s: %s; %s [%s]", name, finding.message, finding.advice, finding.code)
