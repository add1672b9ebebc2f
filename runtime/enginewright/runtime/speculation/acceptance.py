"""Verification: one step gave the logits after each drafted token; how far was the draft right?

k drafted tokens, V vocabulary.

| tensor | shape      | dtype   | meaning                                                        |
|--------|------------|---------|----------------------------------------------------------------|
| logits | [k + 1, V] | float32 | after the row's last token, then after each token of the draft |

Each position is sampled as a plain decode step would sample it: by the request's own sampler, from
the engine's logits, with the tokens before it as its history, and with the random number of that
step. So the output is the same token by token, and where it is random it has the same distribution,
whatever was drafted. The draft only decides how many of the positions could be computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enginewright.runtime.engine import RowLogits


def verify(
    draft: Sequence[int],
    logits: Sequence[RowLogits],
    choose: Callable[[RowLogits], int | None],
) -> int:
    """Choose tokens until one is not the drafted one; returns how many were.

    ``choose`` takes the logits [V] of the next position and gives its token, None when there is
    none after which the row goes on. The last choice is beyond the draft, or instead of it.
    """
    assert len(logits) == len(draft) + 1
    for accepted, token in enumerate(draft):
        if choose(logits[accepted]) != token:
            return accepted
    choose(logits[len(draft)])
    return len(draft)
