"""A row: one sequence of tokens that the engine computes, from its prompt to its last token."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Row:
    """What the scheduler knows of a row.

    ``exact``: its tokens must not depend on what ran before or beside it. ``reads_cache``: whether
    it may take over what others have computed. ``rows`` and ``length``: it needs room for so many
    rows of so many tokens before it begins (a beam search), which it then keeps.
    """

    id: int
    tokens: list[int]
    exact: bool = False
    reads_cache: bool = True
    rows: int = 1
    length: int = 0
    index: int = 0
    """Which of those that have a prompt in common; they come and go in this order."""
    live: bool = False
    """Whether the cache has room for it; else it waits."""
    computed: int = 0
    """Leading tokens that the cache holds."""
    to_prefill: int = 0
    """Leading tokens that prefill and extend steps compute; the rest comes from decode steps."""
    cached: int | None = None
    """Tokens that were taken over from the cache when the row was admitted; None before that."""
    admitted_at: float | None = None
    """When it was first admitted, by ``time.perf_counter()``; None before that."""
    order: tuple[int, int] = field(default=(0, 0), init=False)
    """Who came first."""

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)

    @property
    def begun(self) -> bool:
        """Whether it has a token of its output: the first one may be for other rows as well."""
        return len(self.tokens) > self.prompt

    @property
    def remaining(self) -> int:
        """Tokens that are known and not computed."""
        return len(self.tokens) - self.computed
