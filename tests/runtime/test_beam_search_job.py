"""Beam searches on the core: what the rows do does not show, and what comes out is vLLM's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from enginewright.runtime.beam_search.job import BeamJob
from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.beam_search.results import beam_output, request_output
from enginewright.runtime.beam_search.run import BeamJobs, run, warn_of_generate
from enginewright.runtime.beam_search.search import BeamSearch
from enginewright.runtime.errors import EnginewrightError, RequestError, SamplingParamsError
from enginewright.runtime.requests.outputs import Logprob
from enginewright.runtime.sampling.structured import StructuredOutputsParams
from enginewright.runtime.scheduling.core import EngineCore
from enginewright.runtime.text.tokenizer import Tokenizer

EOS = 30
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Tokens 0 to 25 are letters; 30 is special."""
    vocabulary = {chr(97 + at): at for at in range(26)} | {f"[{at}]": at for at in range(26, 30)}
    backend = Backend(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["</s>"])
    assert backend.token_to_id("</s>") == EOS
    return Tokenizer(backend)


def jobs_of(engine: Any, tokenizer: Tokenizer, constrain: Any = None) -> BeamJobs:
    def read(prompt: Any, max_tokens: int) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, tokenizer.encode(prompt)
        return None, list(prompt)

    return BeamJobs(tokenizer, engine.describe(), [EOS], itertools.count(), read, constrain)


def alone(engine: Any, prompt: Sequence[int], params: BeamSearchParams) -> list[list[int]]:
    """The same search without a core."""
    room = engine.describe().max_context - len(prompt)
    search = BeamSearch(params, vocab_size=31, eos_token_ids=[EOS], room=room)
    beams = [list(prompt)]
    while beams:
        branches = search.step([engine.logits(np.array(beam, np.int64)) for beam in beams])
        beams = [[*beams[parent], token] for parent, token in branches]
    return [each.token_ids for each in search.hypotheses()]


REQUEST = st.tuples(
    st.lists(st.integers(0, 29), min_size=1, max_size=20),
    st.integers(1, 4),  # beams
    st.integers(1, 14),  # tokens
    st.sampled_from(["vllm", "hf"]),
    st.sampled_from([-1.0, 0.0, 1.0]),
)


@settings(max_examples=60)
@given(st.lists(REQUEST, min_size=1, max_size=4), st.sampled_from([0, 4, 16]), st.integers(4, 6))
def test_any_searches_together(
    null_engine: Any, tokenizer: Tokenizer, requests: Any, block_size: int, rows: int
) -> None:
    """Each finds what it finds alone, in whatever layout of the cache."""
    engine = null_engine(max_batch=rows, steps=(rows, rows, 1), block_size=block_size)
    core, made = EngineCore(engine), jobs_of(engine, tokenizer)
    cases = [
        (prompt, BeamSearchParams(width, length, algorithm=algorithm, length_penalty=penalty))
        for prompt, width, length, algorithm, penalty in requests
    ]
    jobs = [made.make(prompt, params) for prompt, params in cases]
    run(core, jobs)
    assert not core.busy
    for job, (prompt, params) in zip(jobs, cases, strict=True):
        assert [each.token_ids for each in job.hypotheses] == alone(engine, prompt, params)


@pytest.fixture
def engine(null_engine: Any) -> Any:
    return null_engine(max_batch=6, steps=(6, 6, 1))


def test_sequences_are_as_in_vllm(engine: Any, tokenizer: Tokenizer) -> None:
    params = BeamSearchParams(3, 6)
    job = jobs_of(engine, tokenizer).make("dbebf", params)
    run(EngineCore(engine), [job])
    output = beam_output(job)
    assert len(output.sequences) == 3
    assert output.error is None
    scores = [each.score for each in output.sequences]
    assert scores == sorted(scores, reverse=True)
    expected = alone(engine, [3, 1, 4, 1, 5], params)
    for each, token_ids in zip(output.sequences, expected, strict=True):
        assert each.orig_prompt == {"prompt": "dbebf", "prompt_token_ids": [3, 1, 4, 1, 5]}
        assert each.generated_token_ids == token_ids
        assert each.tokens == [3, 1, 4, 1, 5, *token_ids]
        assert each.text == tokenizer.decode(each.tokens)
        assert each.text == "dbebf" + each.generated_text
        assert each.score == pytest.approx(each.cum_logprob / len(token_ids))
        assert each.finish_reason == ("stop" if token_ids[-1] == EOS else "length")
        assert each.stop_reason is None
        assert each.lora_request is None
        assert len(each.logprobs) == len(token_ids)
        chosen = [row[token] for row, token in zip(each.logprobs, token_ids, strict=True)]
        assert sum(entry.logprob for entry in chosen) == pytest.approx(each.cum_logprob)
        assert all(isinstance(entry, Logprob) and entry.rank for entry in chosen)
        texts = [tokenizer.decode([token], skip_special_tokens=False) for token in token_ids]
        assert [entry.decoded_token for entry in chosen] == texts
        assert all(len(row) == 6 for row in each.logprobs)


def test_beams_as_the_outputs_of_a_request(engine: Any, tokenizer: Tokenizer) -> None:
    job = jobs_of(engine, tokenizer).make(PROMPT, BeamSearchParams(3, 6))
    run(EngineCore(engine), [job])
    output, beams = request_output(job), beam_output(job).sequences
    assert (output.prompt, output.prompt_token_ids) == (None, PROMPT)
    assert output.finished
    assert output.error is None
    assert output.num_cached_tokens == 0
    assert [each.index for each in output.outputs] == [0, 1, 2]
    for completion, beam in zip(output.outputs, beams, strict=True):
        assert completion.text == beam.generated_text
        assert completion.token_ids == beam.generated_token_ids
        assert completion.cumulative_logprob == beam.cum_logprob
        assert completion.logprobs == beam.logprobs
        assert completion.finish_reason == beam.finish_reason
    metrics = output.metrics
    assert metrics is not None
    first, last = metrics.first_token_time, metrics.finished_time
    assert first is not None
    assert last is not None
    assert metrics.arrival_time <= first <= last


@pytest.mark.parametrize("include", [False, True])
def test_text_is_cut_at_a_stop_string(engine: Any, tokenizer: Tokenizer, include: bool) -> None:
    vowels = ["a", "e", "i", "o", "u"]
    params = BeamSearchParams(
        4, 12, stop=vowels, length_penalty=0.0, include_stop_str_in_output=include
    )
    job = jobs_of(engine, tokenizer).make(PROMPT, params)
    run(EngineCore(engine), [job])
    stopped = [each for each in beam_output(job).sequences if each.stop_reason is not None]
    assert stopped
    for each in stopped:
        assert each.finish_reason == "stop"
        assert each.stop_reason in vowels
        whole = tokenizer.decode(each.generated_token_ids)
        assert whole.endswith(str(each.stop_reason))
        assert each.generated_text == (whole if include else whole[:-1])
        assert each.text == tokenizer.decode(PROMPT) + each.generated_text


@pytest.mark.parametrize("include", [False, True])
def test_eos_shows_where_it_is_asked_for(engine: Any, tokenizer: Tokenizer, include: bool) -> None:
    params = BeamSearchParams(
        4,
        12,
        length_penalty=0.0,
        include_stop_str_in_output=include,
        skip_special_tokens=False,
        allowed_token_ids=[1, EOS],
    )
    job = jobs_of(engine, tokenizer).make(PROMPT, params)
    run(EngineCore(engine), [job])
    ended = [each for each in beam_output(job).sequences if each.tokens[-1] == EOS]
    assert ended
    for each in ended:
        assert each.generated_text == "b" * (len(each.tokens) - 6) + "</s>" * include
        assert each.text == "dbebf" + each.generated_text


class Spoilt:
    """Allows a few tokens, then raises."""

    def __init__(self, left: int) -> None:
        self._left = left

    def allowed(self) -> Any:
        if not self._left:
            raise RequestError("cannot be followed further")
        return np.arange(31)

    def advanced(self, token_id: int) -> Spoilt:
        return Spoilt(self._left - 1)


FORM = StructuredOutputsParams(regex="a+")


def test_what_goes_wrong_ends_one_search_alone(
    engine: Any, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    made = jobs_of(engine, tokenizer, constrain=lambda params: Spoilt(3))
    core, params = EngineCore(engine), BeamSearchParams(3, 6)
    bad = made.make(PROMPT, BeamSearchParams(3, 6, structured_outputs=FORM))
    good = made.make(PROMPT, params)
    run(core, [bad, good])
    assert not core.busy
    assert bad.failed
    assert isinstance(bad.error, RequestError)
    assert "a beam search failed: cannot be followed further" in caplog.text
    assert beam_output(bad).sequences == []
    assert beam_output(bad).error is bad.error
    (completion,) = request_output(bad).outputs
    assert (completion.finish_reason, completion.stop_reason) == ("error", str(bad.error))
    assert [each.token_ids for each in good.hypotheses] == alone(engine, PROMPT, params)


def test_when_all_fail_the_first_error_is_raised(engine: Any, tokenizer: Tokenizer) -> None:
    made = jobs_of(engine, tokenizer, constrain=lambda params: Spoilt(1))
    params = BeamSearchParams(3, 6, structured_outputs=FORM)
    with pytest.raises(RequestError, match="cannot be followed further"):
        run(EngineCore(engine), [made.make(PROMPT, params), made.make(PROMPT, params)])


def test_an_abort_leaves_the_beams_as_they_are(engine: Any, tokenizer: Tokenizer) -> None:
    core = EngineCore(engine)
    job = jobs_of(engine, tokenizer).make(PROMPT, BeamSearchParams(3, 20, ignore_eos=True))
    waiting = jobs_of(engine, tokenizer).make(PROMPT, BeamSearchParams(2, 5))
    core.add(job)
    for _ in range(4):
        core.step()
    core.abort([job, waiting])
    assert job.finished
    assert not core.busy
    sequences = beam_output(job).sequences
    assert [each.finish_reason for each in sequences] == ["abort"] * 3
    assert [len(each.generated_token_ids) for each in sequences] == [4, 4, 4]


def test_an_engine_that_fails_ends_all(engine: Any, tokenizer: Tokenizer) -> None:
    core, made = EngineCore(engine), jobs_of(engine, tokenizer)
    engine.fail_at = 3
    jobs = [made.make(PROMPT, BeamSearchParams(3, 9)), made.make([7], BeamSearchParams(3, 9))]
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(core, jobs)
    assert all(job.finished for job in jobs)
    assert not core.busy


def test_few_at_a_time(engine: Any, tokenizer: Tokenizer) -> None:
    """``concurrency_limit`` changes what runs beside what, not what comes out."""
    made, params = jobs_of(engine, tokenizer), BeamSearchParams(2, 6)
    prompts = [[1, 2], [3], [4, 5, 6], [7, 8], [9]]
    together = [made.make(prompt, params) for prompt in prompts]
    run(EngineCore(engine), together)
    assert max(rows for _, rows, _ in engine.ran) == 6
    engine.ran.clear()
    in_turn = [made.make(prompt, params) for prompt in prompts]
    run(EngineCore(engine), in_turn, concurrency_limit=1)
    assert max(rows for _, rows, _ in engine.ran) == 2
    for one, other in zip(together, in_turn, strict=True):
        assert beam_output(one) == beam_output(other)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "all"])
def test_an_illegal_concurrency_limit(engine: Any, tokenizer: Tokenizer, limit: Any) -> None:
    job = jobs_of(engine, tokenizer).make(PROMPT, BeamSearchParams(2, 6))
    with pytest.raises(SamplingParamsError, match=r"concurrency_limit=.* at least 1, or None"):
        run(EngineCore(engine), [job], limit)


def test_no_searches() -> None:
    run(EngineCore.__new__(EngineCore), [])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (BeamSearchParams(7, 6), r"beam_width=7: each beam is a row, and this engine runs 6"),
        (BeamSearchParams(2, 6, stop_token_ids=[31]), "stop_token_ids=.* not in the vocabulary"),
        ({"beam_width": 2}, r"params=\{'beam_width': 2\}: give a BeamSearchParams"),
    ],
)
def test_what_an_engine_cannot_do(
    engine: Any, tokenizer: Tokenizer, params: Any, message: str
) -> None:
    with pytest.raises(SamplingParamsError, match=message):
        jobs_of(engine, tokenizer).make(PROMPT, params)


def test_the_context_is_the_limit_of_all_beams(engine: Any, tokenizer: Tokenizer) -> None:
    prompt = [7] * 60
    job = jobs_of(engine, tokenizer).make(prompt, BeamSearchParams(3, 50, ignore_eos=True))
    run(EngineCore(engine), [job])
    assert [len(each.token_ids) for each in job.hypotheses] == [4, 4, 4]


def test_logits_that_are_no_numbers(null_engine: Any, tokenizer: Tokenizer) -> None:
    class Broken(null_engine):  # type: ignore[misc]
        def logits(self, tokens: Any) -> Any:
            return np.full(31, np.nan, np.float32) if tokens[0] == 9 else super().logits(tokens)

    engine = Broken(max_batch=6, steps=(6, 6, 1))
    made = jobs_of(engine, tokenizer)
    bad, good = (made.make(prompt, BeamSearchParams(2, 4)) for prompt in ([9, 9], PROMPT))
    run(EngineCore(engine), [bad, good])
    assert isinstance(bad.error, EnginewrightError)
    assert not good.failed


def test_the_warning_names_the_call_to_use() -> None:
    with pytest.warns(DeprecationWarning, match=r"call LLM\.beam_search\(prompts, params\)"):
        warn_of_generate()


def test_rows_are_named_once(engine: Any, tokenizer: Tokenizer) -> None:
    made = jobs_of(engine, tokenizer)
    jobs: list[BeamJob] = [made.make(PROMPT, BeamSearchParams(3, 4)) for _ in range(2)]
    assert [tuple(job.row_ids) for job in jobs] == [(0, 1, 2), (3, 4, 5)]
    assert tuple(made.make(PROMPT, BeamSearchParams(2, 4), [8, 9]).row_ids) == (8, 9)
    row = jobs[0].first_row()
    assert (row.id, row.rows, row.length, row.tokens) == (0, 3, 9, PROMPT)
