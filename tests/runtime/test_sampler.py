"""The sampler: greedy, distribution, repeatability, penalties, log probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from enginewright.runtime.errors import EnginewrightError, SamplingParamsError
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import SampledToken, Sampler

V = 1000
LOGITS = np.random.default_rng(3).normal(0, 3, V).astype(np.float32)


def sampler(
    vocab: int = V, eos: tuple[int, ...] = (), prompt: tuple[int, ...] = (), **fields: object
) -> Sampler:
    return Sampler(SamplingParams(**fields), vocab, eos, prompt)  # type: ignore[arg-type]


def frequencies(probabilities: NDArray[np.float64], draws: int, **fields: object) -> list[int]:
    """How often each token is drawn at ``draws`` steps of one seeded request."""
    logits = np.log(probabilities).astype(np.float32)
    one = sampler(len(logits), seed=11, max_tokens=None, **fields)
    output: list[int] = []
    counts = [0] * len(logits)
    for _ in range(draws):
        output.append(one.sample(logits, output).token_id)
        counts[output[-1]] += 1
    return counts


def chi_square(counts: list[int], probabilities: NDArray[np.float64]) -> float:
    expected = probabilities / probabilities.sum() * sum(counts)
    possible = expected > 0
    assert sum(np.array(counts)[~possible]) == 0
    return float((((np.array(counts) - expected)[possible]) ** 2 / expected[possible]).sum())


def test_greedy_takes_the_best_and_leaves_the_logits_alone() -> None:
    logits = LOGITS.copy()
    logits.setflags(write=False)
    assert sampler(temperature=0).sample(logits, []) == SampledToken(int(LOGITS.argmax()))


def test_distribution_is_that_of_the_logits() -> None:
    probabilities = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    # 18.47 is the 0.999 quantile of chi-square with 4 degrees of freedom
    assert chi_square(frequencies(probabilities, 4000), probabilities) < 18.47


def test_distribution_over_many_blocks() -> None:
    """A vocabulary larger than the blocks in which the running sum is formed."""
    probabilities = np.zeros(2000) + 1e-12
    chosen = np.array([0, 511, 512, 700, 1023, 1024, 1999])
    probabilities[chosen] = np.array([0.1, 0.2, 0.1, 0.2, 0.1, 0.1, 0.2])
    counts = np.array(frequencies(probabilities, 4000))[chosen].tolist()
    assert sum(counts) == 4000
    assert chi_square(counts, probabilities[chosen]) < 22.46  # 6 degrees of freedom


def test_temperature_sharpens() -> None:
    probabilities = np.array([0.5, 0.3, 0.2])
    counts = frequencies(probabilities, 3000, temperature=0.5)
    assert chi_square(counts, probabilities**2) < 13.82


def test_truncations_renormalise() -> None:
    probabilities = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    kept = np.array([0.4, 0.3, 0.0, 0.0, 0.0])
    for fields in ({"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.5}, {"top_k": 3, "top_p": 0.75}):
        assert chi_square(frequencies(probabilities, 2000, **fields), kept) < 10.83, fields


def test_order_is_min_p_then_top_p() -> None:
    """vLLM's: top_p counts only what min_p left, so that it may leave one fewer."""
    probabilities = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    # After min_p: 0.571, 0.429; before it top_p=0.55 would have needed two tokens.
    counts = frequencies(probabilities, 200, min_p=0.6, top_p=0.55)
    assert counts == [200, 0, 0, 0, 0]


@given(st.integers(-(2**63), 2**64 - 1).filter(lambda seed: seed != -1), st.integers(0, 10**6))
def test_token_depends_on_seed_step_and_logits_only(seed: int, step: int) -> None:
    class Steps(list[int]):
        def __len__(self) -> int:
            return step

    fresh = sampler(seed=seed).sample(LOGITS, Steps())
    used = sampler(seed=seed, prompt=(1, 2, 3))
    for other in range(3):
        used.sample(LOGITS[::-1].copy(), [0] * other)
    assert used.sample(LOGITS, Steps()) == fresh


def test_seeds_and_steps_differ() -> None:
    flat = np.zeros(V, np.float32)
    by_seed = {sampler(seed=seed).sample(flat, []).token_id for seed in range(200)}
    one = sampler(seed=1)
    by_step = {one.sample(flat, [0] * step).token_id for step in range(200)}
    assert len(by_seed) > 150
    assert len(by_step) > 150


def test_without_a_seed_requests_differ() -> None:
    flat = np.zeros(V, np.float32)
    assert len({sampler().sample(flat, []).token_id for _ in range(50)}) > 30


def test_default_seed_serves_requests_without_one() -> None:
    def first(seed: int | None, default: int | None) -> int:
        return Sampler(SamplingParams(seed=seed), V, (), (), default).sample(LOGITS, []).token_id

    assert first(None, 5) == first(5, None) == first(5, 77)


def test_outputs_of_one_prompt_have_streams_of_their_own() -> None:
    """Index 0 draws what a request alone draws; the streams are independent of each other."""
    flat = np.zeros(V, np.float32)
    params = SamplingParams(seed=7, n=3)

    def drawn(index: int) -> list[int]:
        one = Sampler(params, V, (), (), None, index)
        return [one.sample(flat, [0] * step).token_id for step in range(100)]

    rows = [drawn(index) for index in range(3)]
    alone = sampler(seed=7)
    assert rows[0] == [alone.sample(flat, [0] * step).token_id for step in range(100)]
    assert rows == [drawn(index) for index in range(3)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert sum(a == b for a, b in zip(rows[first], rows[second], strict=True)) < 5


def test_the_distribution_over_indexes_is_that_of_the_logits() -> None:
    """Across the outputs of one seed at one step, as along the steps of one output."""
    probabilities = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    logits = np.log(probabilities).astype(np.float32)
    params = SamplingParams(seed=5, n=2)
    counts = [0] * 5
    for index in range(4000):
        counts[Sampler(params, 5, (), (), None, index).sample(logits, []).token_id] += 1
    assert chi_square(counts, probabilities) < 18.47


def test_biases_and_allowed_tokens_shape_the_distribution() -> None:
    probabilities = np.array([0.4, 0.3, 0.2, 0.1])
    wanted = np.array([0.4 * np.exp(-1), 0.0, 0.2, 0.1])
    fields = {"logit_bias": {0: -1.0}, "allowed_token_ids": [0, 2, 3]}
    assert chi_square(frequencies(probabilities, 3000, **fields), wanted) < 13.82


def test_hfs_order_truncates_by_top_p_first() -> None:
    """Where vLLM's order leaves one token (above), Hugging Face's leaves two."""
    probabilities = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    counts = frequencies(probabilities, 2000, min_p=0.6, top_p=0.55, processor_order="hf")
    assert chi_square(counts, np.array([0.4, 0.3, 0.0, 0.0, 0.0])) < 10.83


def test_named_log_probabilities() -> None:
    one = sampler(seed=4, logprob_token_ids=[9, 3, 500])
    sampled = one.sample(LOGITS, [])
    assert sampled.top is not None
    assert list(sampled.top) == [sampled.token_id, 9, 3, 500]
    normaliser = float(np.log(np.exp(LOGITS.astype(np.float64)).sum()))
    for token in (9, 3, 500):
        logprob, rank = sampled.top[token]
        assert logprob == pytest.approx(float(LOGITS[token]) - normaliser, abs=1e-5)
        assert rank == np.count_nonzero(LOGITS[token] <= LOGITS)


def test_min_tokens_bars_eos_and_stop_tokens() -> None:
    logits = np.array([1.0, 9.0, 8.0, 2.0], np.float32)
    one = sampler(4, eos=(1, 99), temperature=0, min_tokens=2, stop_token_ids=[2])
    assert [one.sample(logits, [0] * step).token_id for step in range(3)] == [3, 3, 1]
    drawn = sampler(4, eos=(1,), seed=1, min_tokens=2, stop_token_ids=[2])
    assert {drawn.sample(logits, []).token_id for _ in range(9)} <= {0, 3}
    assert logits[1] == 9.0


def test_penalties_reach_prompt_and_output_as_they_should() -> None:
    logits = np.array([4.0, 3.0, 2.0], np.float32)
    repetition = sampler(3, prompt=(0,), temperature=0, repetition_penalty=1.9)
    assert repetition.sample(logits, []).token_id == 1
    assert repetition.sample(logits, [1]).token_id == 0
    presence = sampler(3, prompt=(0,), temperature=0, presence_penalty=1.5)
    assert presence.sample(logits, []).token_id == 0  # the prompt does not count
    assert presence.sample(logits, [0]).token_id == 1
    frequency = sampler(3, temperature=0, frequency_penalty=0.4)
    assert [frequency.sample(logits, [0] * n).token_id for n in (2, 3)] == [0, 1]


def test_logprobs_are_of_the_raw_logits() -> None:
    torch = pytest.importorskip("torch")
    expected = torch.log_softmax(torch.from_numpy(LOGITS), -1)
    best = torch.topk(expected, 3)
    one = sampler(seed=4, temperature=0.3, top_k=5, repetition_penalty=1.3, prompt=(5,), logprobs=3)
    sampled = one.sample(LOGITS, [int(best.indices[0])])
    assert sampled.logprob == pytest.approx(expected[sampled.token_id].item(), abs=1e-5)
    assert sampled.top is not None
    assert next(iter(sampled.top)) == sampled.token_id
    ranks = {token: rank for token, (_, rank) in sampled.top.items()}
    assert {int(token): rank for rank, token in enumerate(best.indices, 1)}.items() <= ranks.items()
    for token, (logprob, _) in sampled.top.items():
        assert logprob == pytest.approx(expected[token].item(), abs=1e-5)


def test_rank_of_a_token_outside_the_top() -> None:
    logits = np.array([1.0, 5.0, 4.0, 3.0, 2.0], np.float32)
    chosen = sampler(5, eos=(1, 2, 3), temperature=0, min_tokens=1, logprobs=1).sample(logits, [])
    assert chosen.top is not None
    assert [(token, rank) for token, (_, rank) in chosen.top.items()] == [(4, 4), (1, 1)]


def test_logprobs_by_number() -> None:
    assert sampler(seed=1).sample(LOGITS, []).logprob is None
    none = sampler(seed=1, logprobs=0).sample(LOGITS, [])
    assert none.top is not None
    assert list(none.top) == [none.token_id]
    every = sampler(seed=1, logprobs=-1).sample(LOGITS, [])
    assert every.top is not None
    assert sorted(every.top) == list(range(V))
    assert sum(np.exp(logprob) for logprob, _ in every.top.values()) == pytest.approx(1, abs=1e-4)


def test_stop_tokens_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(SamplingParamsError, match=r"stop_token_ids=\[1000\].*0 to 999"):
        sampler(stop_token_ids=[5, V])


def test_min_tokens_must_leave_a_token() -> None:
    with pytest.raises(SamplingParamsError, match="min_tokens=1 leaves no token"):
        sampler(2, eos=(0, 1), min_tokens=1)
    assert sampler(2, eos=(0, 1)).sample(LOGITS[:2], []).token_id in (0, 1)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_an_error(temperature: float, bad: float) -> None:
    logits = LOGITS.copy()
    logits[7] = bad
    with pytest.raises(EnginewrightError, match="no usable logits"):
        sampler(temperature=temperature).sample(logits, [])
