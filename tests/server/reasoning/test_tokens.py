"""How many tokens are thoughts, however an output comes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from enginewright.runtime import CompletionOutput
from enginewright.server.reasoning.formats import make_reasoning_parser
from enginewright.server.serving.pieces import OutputReader

GRANITE = "Here is my thought process: Hm. Here is my response: Yes."


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("late", [0, 2])
@pytest.mark.parametrize(
    ("name", "prompt", "texts", "count"),
    [
        ("qwen3", "", ["<think>", "Hm", ".", "</think>", "\n\n", "Yes"], 4),
        ("qwen3", "<think>\n", ["Hm", ".", "</think>", "Yes", "</think>"], 3),
        ("qwen3", "<think>\n", ["Hm", "</", "think", ">", "Yes"], 4),
        ("qwen3", "<think>\n", ["Hm", ".", " and"], 3),
        ("qwen3", "<think>\n\n</think>\n", ["Yes", "."], 0),
        ("qwen3", "", ["Yes", " <think>", "no"], 0),
        ("deepseek_r1", "", ["Hm", ".", "</think>", "Yes"], 3),
        ("granite", "", [each + " " for each in GRANITE.split()], 10),
    ],
)
def test_tokens_up_to_the_mark_are_thoughts(
    name: str, prompt: str, texts: list[str], count: int, size: int, late: int
) -> None:
    """Cut into pieces of ``size`` tokens, whose text may come ``late`` tokens afterwards."""

    def decode(token_ids: Sequence[int]) -> str:
        return "".join(texts[each] for each in token_ids)

    reader = OutputReader(0, reasoning=make_reasoning_parser(name, prompt), decode=decode)
    told = []
    for start in range(0, len(texts), size):
        ids = list(range(start, min(start + size, len(texts))))
        last = ids[-1] == len(texts) - 1
        known = texts[max(0, start - late) : len(texts) if last else max(0, ids[-1] + 1 - late)]
        reason = "stop" if last else None
        piece = reader.read(CompletionOutput(0, "".join(known), ids, finish_reason=reason))
        told += [piece] if piece is not None else []
    assert told[-1].reasoning_tokens == count


def test_without_a_parser_there_is_no_count() -> None:
    piece = OutputReader(0).read(CompletionOutput(0, "Yes", [1], finish_reason="stop"))
    assert piece is not None
    assert piece.reasoning_tokens is None
