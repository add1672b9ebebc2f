"""Logits that stay on the device: an LLM gives what it does over whole logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig

from enginewright.builder.interpreter.engine import InterpretedEngine
from enginewright.runtime import LLM, BeamSearchParams, SamplingParams
from enginewright.runtime.engine import ReducedLogits, StepBatch, StepLogits

VOCAB = 311
LENGTHS = (3, 21, 17, 1)
NEW_TOKENS = 8


class Counting(InterpretedEngine):
    """Counts the rows of logits that it gave, and those that were brought."""

    def __init__(self, *what: Any) -> None:
        super().__init__(*what)
        self.rows = self.brought = 0

    def step(self, batch: StepBatch) -> StepLogits:
        logits = super().step(batch)
        assert isinstance(logits, ReducedLogits)
        self.rows += len(logits)
        bring = logits._bring

        def counted(start: int, end: int) -> np.ndarray:
            self.brought += end - start
            return bring(start, end)

        logits._bring = counted
        return logits


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=256,
    )
    folder: Path = tmp_path_factory.mktemp("reduced") / "checkpoint"
    make_checkpoint(folder, config, dtype="float16")
    return folder


@pytest.fixture(scope="module")
def device(make_graph, checkpoint: Path) -> Counting:
    return Counting(*make_graph(checkpoint, "fp16", "native", top_logits=64))


@pytest.fixture(scope="module")
def llms(
    make_engine, device: Counting, checkpoint: Path, tiny_artifact: Path
) -> Iterator[tuple[LLM, LLM]]:
    """Over whole logits, and over those that stay."""
    whole = make_engine(checkpoint, "fp16", "native")
    with LLM.over(tiny_artifact, whole) as host, LLM.over(tiny_artifact, device) as other:
        yield host, other


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, VOCAB, length).tolist() for length in LENGTHS]


SERVED: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "logprobs": 5},
    {"temperature": 0, "min_tokens": 4, "bad_words": ["a"], "repetition_penalty": 1.2},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "logprobs": 2},
    {"temperature": 0.5, "top_k": 20, "top_p": 0.7, "processor_order": "hf"},
    {"temperature": 0.1, "min_p": 0.2},
    {"temperature": 1.0, "top_k": 30, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    {"temperature": 1.0, "top_k": 30, "n": 3},
]
SOMETIMES: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_p": 0.3},
    {"temperature": 0.3, "top_p": 0.5, "min_p": 0.1, "processor_order": "hf"},
    {"temperature": 1.5, "top_p": 0.2},
]
WHOLE: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.9, "top_k": 100, "logprobs": 0},
    {"temperature": 0, "logprobs": -1},
    {"temperature": 0, "logit_bias": {5: 2.0}},
    {"temperature": 0, "logprob_token_ids": [1, 300]},
    {"temperature": 0, "prompt_logprobs": 2},
    {"temperature": 0, "repetition_penalty": 0.7},
    {"temperature": 0.9, "logits_processors": [lambda output, logits: np.roll(logits, 1)]},
]


def answers(llm: LLM, prompts: Any, params: SamplingParams) -> tuple[list[Any], list[float]]:
    """Ids and ranks, and log probabilities."""
    told: list[Any] = []
    logprobs: list[float] = []
    for output in llm.generate(prompts, params, use_tqdm=False):
        scored = [each for each in output.prompt_logprobs or [] if each]
        for completion in output.outputs:
            scored += completion.logprobs or []
            told.append(list(completion.token_ids))
        for at in scored:
            told.append([(token, each.rank) for token, each in at.items()])
            logprobs += [each.logprob for each in at.values()]
    return told, logprobs


def check(llms: tuple[LLM, LLM], prompts: Any, asked: dict[str, Any]) -> None:
    params = SamplingParams(**asked, seed=11, max_tokens=NEW_TOKENS, ignore_eos=True)
    (wanted, scores), (found, ours) = (answers(llm, prompts, params) for llm in llms)
    assert found == wanted
    np.testing.assert_allclose(ours, scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("asked", [*SERVED, *SOMETIMES, *WHOLE], ids=str)
def test_tokens_and_log_probabilities_are_the_same(llms, prompts, asked) -> None:
    check(llms, prompts, asked)


@pytest.mark.parametrize("asked", SERVED, ids=str)
def test_what_the_highest_settle_brings_next_to_no_row(llms, device, prompts, asked) -> None:
    device.rows = device.brought = 0
    check(llms, prompts, asked)
    assert device.rows >= len(LENGTHS) * NEW_TOKENS
    assert device.brought <= 0.1 * device.rows


@pytest.mark.parametrize("asked", WHOLE, ids=str)
def test_what_needs_whole_rows_brings_them(llms, device, prompts, asked) -> None:
    device.rows = device.brought = 0
    check(llms, prompts, asked)
    assert device.brought >= len(LENGTHS) * (NEW_TOKENS if "prompt_logprobs" not in asked else 1)


def test_requests_of_all_kinds_at_once(llms, prompts) -> None:
    kinds = [*SERVED, *SOMETIMES, *WHOLE]
    params = [SamplingParams(**asked, seed=3, max_tokens=NEW_TOKENS) for asked in kinds]
    every = [prompts[at % len(prompts)] for at in range(len(kinds))]
    host, device = (
        [[list(each.token_ids) for each in output.outputs] for output in outputs]
        for outputs in (llm.generate(every, params, use_tqdm=False) for llm in llms)
    )
    assert device == host


def test_beams_and_logits_of_positions(llms, prompts) -> None:
    host, device = llms
    search = BeamSearchParams(beam_width=3, max_tokens=5)
    found, wanted = (
        [[beam.tokens for beam in output.sequences] for output in llm.beam_search(prompts, search)]
        for llm in (device, host)
    )
    assert found == wanted
    np.testing.assert_array_equal(device.logits(prompts[1]), host.logits(prompts[1]))
    for ours, theirs in zip(device.batch_logits(prompts), host.batch_logits(prompts), strict=True):
        np.testing.assert_array_equal(ours, theirs)
