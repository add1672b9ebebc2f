"""``algorithm="hf"`` finds the beams of transformers' generate, with its scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.beam_search.hypotheses import Hypothesis
from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.beam_search.search import BeamSearch
from enginewright.runtime.text.detokenizer import IncrementalDetokenizer
from enginewright.runtime.text.tokenizer import Tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
PROMPT = [5, 2, 3]


class TableModel(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc, name-defined]
    """Logits that are a row of a random table, chosen by all tokens so far: bitwise the same for
    whoever asks, so that nothing but the search is compared."""

    main_input_name = "input_ids"

    def __init__(self, seed: int, vocab: int, spread: float, ends: Sequence[int]) -> None:
        super().__init__(transformers.PretrainedConfig(vocab_size=vocab, pad_token_id=0))
        rows = np.random.default_rng(seed).normal(0, spread, (997, vocab)).astype(np.float32)
        rows[:, list(ends)] += spread
        self.table = torch.from_numpy(rows)
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Any, **_: Any) -> Any:
        state = torch.zeros(len(input_ids), dtype=torch.int64)
        for column in input_ids.unbind(1):
            state = (state * 31 + column + 7) % 1_000_003
        logits = self.table[state % len(self.table)][:, None]
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


@pytest.fixture(scope="module")
def compared() -> Iterator[list[float]]:
    """The largest difference of scores in each comparison; see them with ``pytest -rP``."""
    differences: list[float] = []
    yield differences
    print(f"{len(differences)} searches compared, scores differ by {max(differences):.1e} at most")


def ours(
    model: Any, prompt: list[int], params: BeamSearchParams, eos: Sequence[int], **given: Any
) -> list[Hypothesis]:
    """Our search over the model, without a cache."""
    search = BeamSearch(
        params, vocab_size=model.config.vocab_size, eos_token_ids=eos, room=1000, **given
    )
    beams = [prompt]
    while beams:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(beams), use_cache=False).logits[:, -1]
        branches = search.step(logits.float().numpy())
        assert search.finished == (not branches)
        beams = [[*beams[parent], token] for parent, token in branches]
    return search.hypotheses()


def theirs(
    model: Any, prompt: list[int], params: BeamSearchParams, eos: Sequence[int], **given: Any
) -> tuple[list[list[int]], list[float]]:
    """Ids and scores from transformers, best first; its padding is cut off."""
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
        num_beams=params.beam_width,
        num_return_sequences=params.beam_width,
        do_sample=False,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens or None,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        eos_token_id=list(eos) or None,
        pad_token_id=0,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **given,
    )
    rows = found.sequences[:, len(prompt) :].tolist()
    lengths = (found.beam_indices >= 0).sum(1).tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)], list(
        found.sequences_scores.tolist()
    )


def difference(found: Sequence[Hypothesis], expected: tuple[list[list[int]], list[float]]) -> float:
    """Of the scores, relative to those above 1; the ids must be equal."""
    ids, scores = expected
    assert [each.token_ids for each in found] == ids
    pairs = zip(found, scores, strict=True)
    largest = max(abs(each.score - score) / max(1.0, abs(score)) for each, score in pairs)
    assert largest <= TOLERANCE
    return largest


def some_search(seed: int) -> tuple[TableModel, BeamSearchParams, list[int]]:
    """Any model, parameters and ends; all as likely, which strategies' are not."""
    random = np.random.default_rng(seed)
    vocab = int(random.integers(8, 60))
    eos = random.choice(np.arange(1, vocab), random.integers(0, 4), replace=False).tolist()
    model = TableModel(seed, vocab, random.choice([0.3, 1.0, 3.0]), eos)
    params = BeamSearchParams(
        int(random.integers(2, 9)),
        int(random.integers(1, 21)),
        algorithm="hf",
        length_penalty=float(random.choice([-1.0, 0.0, 0.5, 1.0, 1.3, 2.0])),
        early_stopping=[True, False, "never"][random.integers(3)],
    )
    return model, params, eos


# Float32 sums may tie, and how torch orders equals is nobody's promise: always the same examples.
@settings(max_examples=200, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_any_search(compared: list[float], seed: int) -> None:
    model, params, eos = some_search(seed)
    found = ours(model, PROMPT, params, eos)
    compared.append(difference(found, theirs(model, PROMPT, params, eos)))


@pytest.fixture(scope="module")
def llama(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Tokenizer]:
    folder = make_checkpoint(tmp_path_factory.mktemp("llama"), {"num_hidden_layers": 1})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model.eval(), Tokenizer.from_file(folder / "tokenizer.json")


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("width", [2, 4, 8])
def test_a_transformer(
    compared: list[float], llama: Any, width: int, length_penalty: float, early_stopping: Any
) -> None:
    """Many tokens end beams here, so that every way to stop is taken."""
    params = BeamSearchParams(
        width,
        12,
        algorithm="hf",
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    model, tokenizer = llama
    ids, eos = tokenizer.encode("Call me Ishmael"), [1, *range(40, 70)]
    compared.append(difference(ours(model, ids, params, eos), theirs(model, ids, params, eos)))


def test_one_beam_is_greedy_search() -> None:
    """As with num_beams=1 there, whatever the length penalty would make of a later end."""
    for seed in range(20):
        model = TableModel(seed, 30, 1.0, [4, 9])
        params = BeamSearchParams(1, 15, algorithm="hf", length_penalty=2.0, early_stopping="never")
        (found,) = ours(model, PROMPT, params, [4, 9])
        greedy = model.generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones((1, 3), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=15,
            eos_token_id=[4, 9],
            pad_token_id=0,
            use_cache=False,
        )
        assert found.token_ids == greedy[0, 3:].tolist()


@pytest.mark.parametrize("seed", range(12))
def test_what_is_allowed_and_when_a_beam_may_end(compared: list[float], seed: int) -> None:
    """Masks apply to log probabilities, which are not normalised again."""
    model, eos = TableModel(seed, 40, 2.0, [3, 7]), [3, 7]
    params = BeamSearchParams(
        4,
        14,
        algorithm="hf",
        allowed_token_ids=[3, 7, *range(10, 30)],
        min_tokens=seed % 6,
    )
    allowed = list(params.allowed_token_ids or ())
    expected = theirs(model, PROMPT, params, eos, prefix_allowed_tokens_fn=lambda *_: allowed)
    compared.append(difference(ours(model, PROMPT, params, eos), expected))


class Neighbours:
    """Only tokens within 12 of the last one, or EOS 3."""

    def __init__(self, last: int) -> None:
        self._last = last

    def allowed(self) -> Any:
        near = np.arange(max(self._last - 12, 0), min(self._last + 13, 40))
        return np.union1d(near, [3])

    def advanced(self, token_id: int) -> Neighbours:
        return Neighbours(token_id)


@pytest.mark.parametrize("seed", range(8))
def test_a_constraint_of_each_beam(compared: list[float], seed: int) -> None:
    model = TableModel(seed, 40, 2.0, [3])
    params = BeamSearchParams(5, 14, algorithm="hf", early_stopping=bool(seed % 2))

    def near(_: int, ids: Any) -> list[int]:
        return list(Neighbours(int(ids[-1])).allowed())

    expected = theirs(model, PROMPT, params, [3], prefix_allowed_tokens_fn=near)
    found = ours(model, PROMPT, params, [3], constraint=Neighbours(PROMPT[-1]))
    compared.append(difference(found, expected))


@pytest.mark.parametrize("stop", [["f"], ["9", "ou"], ["ti", "(a", "o=c"]])
@pytest.mark.parametrize("width", [2, 4, 7])
def test_stop_strings_end_beams(
    compared: list[float], llama: Any, stop: list[str], width: int
) -> None:
    model, tokenizer = llama
    params = BeamSearchParams(width, 14, algorithm="hf", stop=stop, length_penalty=0.0)
    ids = tokenizer.encode("It was 1,")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    expected = theirs(model, ids, params, [1], stop_strings=stop, tokenizer=fast)
    text = IncrementalDetokenizer(tokenizer, params.stop_strings, prompt_token_ids=ids)
    found = ours(model, ids, params, [1], text=text)
    compared.append(difference(found, expected))
    assert any(each.ending.stop_reason in stop for each in found)
