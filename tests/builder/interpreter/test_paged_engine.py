"""The runtime's paged cache under a real model: prefixes taken over, forks, beams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from enginewright.runtime import LLM, BeamSearchParams, SamplingParams

PROMPT = list(range(40, 97))
"""Longer than seven blocks of 8, and not a whole number of them."""


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("paged") / "checkpoint"
    return make_checkpoint(folder, {"max_position_embeddings": 256}, dtype="float16")


@pytest.fixture
def open_llm(checkpoint, tiny_artifact, make_engine) -> Iterator[Callable[..., LLM]]:
    """``open_llm(attention="plugin", kv_cache="auto") -> LLM`` with nothing cached."""
    opened = []

    def make(attention: str = "plugin", kv_cache: str = "auto") -> LLM:
        engine = make_engine(checkpoint, "fp16", attention, kv_cache=kv_cache)
        opened.append(LLM.over(tiny_artifact, engine))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


def _greedy(llm: LLM, prompts: list[list[int]], tokens: int = 12) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params)]


def test_a_prefix_that_is_taken_over_gives_the_ids_of_a_fresh_cache(open_llm):
    prompts = [PROMPT, [*PROMPT, 7, 8, 9], [*PROMPT[:30], 5, 6], PROMPT]
    fresh = [_greedy(open_llm(), [prompt])[0] for prompt in prompts]
    llm = open_llm()
    assert _greedy(llm, prompts[:1]) == fresh[:1]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    outputs = llm.generate(prompts, params)
    assert [list(output.outputs[0].token_ids) for output in outputs] == fresh
    taken = [output.num_cached_tokens for output in outputs]
    assert taken[0] >= 48
    assert taken[1] >= 48
    assert 24 <= taken[2] <= 30


def test_forked_outputs_have_the_logprobs_of_a_fresh_cache(open_llm):
    params = SamplingParams(
        n=3, temperature=1.0, seed=3, max_tokens=16, ignore_eos=True, logprobs=0
    )
    together = open_llm().generate([PROMPT], params)[0]
    assert len({tuple(output.token_ids) for output in together.outputs}) == 3
    fresh = open_llm()
    for output in together.outputs:
        ids = list(output.token_ids)
        logits = fresh.logits([*PROMPT, *ids])[len(PROMPT) - 1 : -1].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        wanted = np.take_along_axis(logprobs, np.array(ids)[:, None], axis=1)[:, 0]
        found = [row[token].logprob for row, token in zip(output.logprobs, ids, strict=True)]
        np.testing.assert_allclose(found, wanted, atol=0.05)


def test_beams_over_blocks_are_beams_over_slots(open_llm):
    """The native engine copies whole rows; here beams share blocks and copy what they write."""
    params = BeamSearchParams(beam_width=4, max_tokens=14, ignore_eos=True)
    prompts = [{"prompt_token_ids": PROMPT}, {"prompt_token_ids": PROMPT[:21]}]
    found = {}
    for attention in ("plugin", "native"):
        outputs = open_llm(attention).beam_search(prompts, params)
        found[attention] = [[list(s.tokens) for s in output.sequences] for output in outputs]
    assert found["plugin"] == found["native"]
    again = open_llm()
    _greedy(again, [PROMPT])  # and with a prefix that is there already
    outputs = again.beam_search(prompts, params)
    assert [[list(s.tokens) for s in output.sequences] for output in outputs] == found["plugin"]


@pytest.mark.parametrize("kv_cache", ["int8", "fp8"])
def test_a_quantized_cache_is_close(open_llm, kv_cache):
    exact, rounded = (
        open_llm(kv_cache=kind).logits(PROMPT, chunk=9) for kind in ("auto", kv_cache)
    )
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    print(f"{kv_cache}: {error:.1e} of the largest logit")
    assert 0 < error < {"int8": 0.1, "fp8": 0.2}[kv_cache]


def test_rows_together_have_the_ids_that_they_have_alone(open_llm):
    prompts = [PROMPT[shift : shift + 40] for shift in range(8)]
    llm = open_llm()
    alone = [_greedy(llm, [prompt], 20)[0] for prompt in prompts]
    llm.reset_prefix_cache()
    assert _greedy(llm, prompts, 20) == alone
