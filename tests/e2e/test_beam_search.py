"""Beam search over the real SmolLM2 in fp32: the ids and scores of transformers over 64 tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginewright.builder.recipe import load_recipe
from enginewright.builder.source import open_source
from enginewright.runtime import LLM, BeamSearchParams

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-135m-instruct-cpu-fp32.yaml"
TOKENS = 64
FULL_STOP = 30
RELATIVE = 1e-4
"""Of a score, a sum of up to 64 log probabilities from logits that differ in the last bits."""

SEARCHES = [
    ("The capital of France is", 2, 1.0, False, ()),
    ("Once upon a time there was a", 3, 0.5, True, (FULL_STOP,)),
    ("def fibonacci(n):", 4, 1.0, "never", ()),
    ("The best way to learn a language is", 5, 2.0, False, (FULL_STOP,)),
    ("Once upon a time there was a", 8, -1.0, "never", (FULL_STOP,)),
]


@pytest.fixture(scope="module")
def llm(built: Callable[[str], Path]) -> Any:
    with LLM(built("cpu-fp32")) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(llm: LLM) -> Any:
    return open_source(load_recipe(RECIPE).source).reference_model()


@pytest.mark.parametrize(("prompt", "width", "penalty", "early", "stops"), SEARCHES)
def test_it_finds_what_transformers_finds(
    llm: LLM,
    reference: Any,
    prompt: str,
    width: int,
    penalty: float,
    early: bool | str,
    stops: tuple[int, ...],
) -> None:
    ids = llm.get_tokenizer().encode(prompt)
    eos = [*llm.manifest.eos_token_ids, *stops]
    with torch.no_grad():
        theirs = reference.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=TOKENS,
            length_penalty=penalty,
            early_stopping=early,
            eos_token_id=eos,
            pad_token_id=eos[0],
            return_dict_in_generate=True,
            output_scores=True,
        )
    params = BeamSearchParams(
        beam_width=width,
        max_tokens=TOKENS,
        length_penalty=penalty,
        algorithm="hf",
        early_stopping=early,
        stop_token_ids=stops,
    )
    (ours,) = llm.beam_search([{"prompt_token_ids": ids}], params)
    found = [list(beam.generated_token_ids) for beam in ours.sequences]
    assert found == [_ended(row[len(ids) :], eos) for row in theirs.sequences.tolist()]
    scores = theirs.sequences_scores.tolist()
    assert [beam.score for beam in ours.sequences] == pytest.approx(scores, rel=RELATIVE)
    worst = max(abs(beam.score - score) for beam, score in zip(ours.sequences, scores, strict=True))
    print(f"width {width}: longest {max(map(len, found))} tokens, scores within {worst:.1e}")


def _ended(ids: list[int], eos: list[int]) -> list[int]:
    """Without the padding behind the token that ended it."""
    end = next((at for at, token in enumerate(ids) if token in eos), len(ids))
    return ids[: end + 1]
