"""Steps of attention that every way to compute the op is held to, beside the numpy reference.

Where one of them does not offer a case, its test says why. What is of one alone (its types, sizes
of blocks, long pasts) stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from enginewright.plugins.attention.contract import AttentionAttributes

LONGEST = 48
"""Tokens that a row has at most, new ones included."""


@dataclass(frozen=True)
class Case:
    """One step; ``pasts`` and ``news`` hold one length a row."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 32
    pasts: tuple[int, ...] = (0, 0, 0)
    news: tuple[int, ...] = (7, 3, 11)
    window: int = 0
    softcap: float = 0.0
    rotary_dim: int = 0
    interleaved: int = 0
    sinks: bool = False

    @property
    def attributes(self) -> AttentionAttributes:
        return AttentionAttributes(
            num_heads=self.heads,
            kv_heads=self.kv_heads,
            scale=self.size**-0.5,
            window=self.window,
            softcap=self.softcap,
            rotary_dim=self.rotary_dim,
            interleaved=self.interleaved,
        )


_PREFILL = Case()
_DECODE = Case(pasts=(5, 31, 17), news=(1, 1, 1))
_EXTEND = Case(pasts=(13,), news=(9,))
_MIXED = Case(pasts=(0, 40, 3), news=(7, 1, 11))
"""A prefill, a decode and an extension in one step."""
_ALL: dict[str, Any] = {"window": 6, "softcap": 3.0, "rotary_dim": 16, "sinks": True}
_CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"kv_heads": 4},
    {"heads": 9, "kv_heads": 3, "size": 64},
    {"heads": 8, "kv_heads": 1},
    {"size": 16},
    {"size": 80},
    {"window": 6},
    {"softcap": 3.0},
    {"rotary_dim": 16},
    {"rotary_dim": 32},
    {"rotary_dim": 16, "interleaved": 1},
    {"sinks": True},
    _ALL,
)
CASES = tuple(
    replace(kind, **change)
    for kind, changes in (
        (_PREFILL, _CHANGES),
        (_DECODE, _CHANGES),
        (_EXTEND, _CHANGES),
        (_MIXED, ({}, _ALL)),
    )
    for change in changes
)
