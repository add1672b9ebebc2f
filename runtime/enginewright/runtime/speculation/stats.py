"""Counters of speculation, with vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SpeculationStats:
    """Sums since the LLM was loaded. Read them at any time; they only grow."""

    num_drafts: int = 0
    """Drafts that a step checked."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_pos: list[int] = field(default_factory=list)
    """How often the first, second... token of a draft was accepted."""

    @property
    def acceptance_rate(self) -> float | None:
        """Of the drafted tokens; None before the first."""
        if not self.num_draft_tokens:
            return None
        return self.num_accepted_tokens / self.num_draft_tokens

    def count(self, drafted: int, accepted: int) -> None:
        """Take in one draft."""
        self.num_drafts += 1
        self.num_draft_tokens += drafted
        self.num_accepted_tokens += accepted
        missing = drafted - len(self.num_accepted_tokens_per_pos)
        self.num_accepted_tokens_per_pos += [0] * missing
        for at in range(accepted):
            self.num_accepted_tokens_per_pos[at] += 1
