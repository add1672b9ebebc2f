"""Speculation end to end on a tiny artifact: outputs, streams, counts, drafts that are refused."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import (
    LLM,
    ArtifactNotFoundError,
    AsyncLLM,
    EnginewrightError,
    SamplingParams,
    StructuredOutputsParams,
)
from enginewright.runtime.backends.onnxruntime import OnnxRuntimeEngine
from enginewright.runtime.engine import EngineInfo

NGRAM = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3}
SPINNING_STOP = "session.force_spinning_stop"
TEXT = "one two three four five six seven one two three four"


@pytest.fixture(scope="module", autouse=True)
def step_invariant(always: Any) -> Iterator[None]:
    """The tiny model's logits are far enough apart that the last bits decide nothing."""
    describe = OnnxRuntimeEngine.describe

    def said(engine: OnnxRuntimeEngine) -> EngineInfo:
        return dataclasses.replace(describe(engine), step_invariant=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntimeEngine, "describe", said)
        patch.setattr("enginewright.runtime.speculation.speculator.Governor", always)
        yield


@pytest.fixture(scope="module")
def plain(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1) as llm:
        yield llm


@pytest.fixture(scope="module", params=["ngram", "draft"])
def fast(request: pytest.FixtureRequest, tiny_artifact: Path) -> Iterator[LLM]:
    draft = {"model": str(tiny_artifact), "num_speculative_tokens": 4}
    config = NGRAM if request.param == "ngram" else draft
    with LLM(tiny_artifact, threads=1, speculative_config=config) as llm:
        yield llm


def test_engines_that_step_in_turns_do_not_keep_the_cores_busy(fast: LLM) -> None:
    """While the threads of one spin, a step of the other takes twice as long."""
    core: Any = fast._core
    proposer = core._speculator._proposer
    engines = [core._engine, *([proposer._engine] if hasattr(proposer, "_engine") else [])]
    options = [engine._session.get_session_options() for engine in engines]
    if len(engines) == 1:
        with pytest.raises(RuntimeError, match="spinning"):
            options[0].get_session_config_entry(SPINNING_STOP)
        return
    assert [each.get_session_config_entry(SPINNING_STOP) for each in options] == ["1", "1"]


PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 60},
    "max_tokens": {"temperature": 0, "max_tokens": 7},
    "seeded": {"seed": 3, "temperature": 0.2, "max_tokens": 60},
    "several": {"seed": 3, "temperature": 0.2, "n": 3, "max_tokens": 30},
    "stop string": {"temperature": 0, "max_tokens": 60, "stop": ["e", "f", "\x05", "\x1f"]},
    "penalty": {"temperature": 0, "max_tokens": 40, "repetition_penalty": 1.05},
    "context": {"temperature": 0, "max_tokens": None, "ignore_eos": True},
    "choice": {
        "temperature": 0,
        "max_tokens": 60,
        "structured_outputs": StructuredOutputsParams(regex="(one two three ){3,6}done"),
    },
}


@pytest.mark.parametrize("name", PARAMS)
def test_ids_and_ends_are_those_of_plain_decoding(plain: LLM, fast: LLM, name: str) -> None:
    params = SamplingParams(**PARAMS[name])
    assert fast.generate(TEXT, params)[0].outputs == plain.generate(TEXT, params)[0].outputs
    prompts = [TEXT, "another", TEXT * 2, "x"]
    together = [each.outputs for each in fast.generate(prompts, params)]
    assert together == [each.outputs for each in plain.generate(prompts, params)]


def test_logprobs_are_the_same(plain: LLM, fast: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, logprobs=3, prompt_logprobs=2)
    one, other = fast.generate(TEXT, params)[0], plain.generate(TEXT, params)[0]
    assert one.outputs[0].logprobs is not None
    assert other.outputs[0].logprobs is not None
    for mine, its in zip(one.outputs[0].logprobs, other.outputs[0].logprobs, strict=True):
        assert list(mine) == list(its)
        assert [each.rank for each in mine.values()] == [each.rank for each in its.values()]
        wanted = [each.logprob for each in its.values()]
        assert [each.logprob for each in mine.values()] == pytest.approx(wanted, abs=1e-4)
    assert one.outputs[0].cumulative_logprob == pytest.approx(other.outputs[0].cumulative_logprob)
    assert one.prompt_logprobs == other.prompt_logprobs


def test_a_stream_gives_several_tokens_at_a_time(plain: LLM, fast: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    news = list(fast.stream(TEXT, params))
    (whole,) = plain.generate(TEXT, params)
    assert "".join(each.outputs[0].text for each in news) == whole.outputs[0].text
    counts = [len(each.outputs[0].token_ids) for each in news]
    assert sum(counts) == 60
    metrics = news[-1].metrics
    assert metrics is not None
    assert max(counts) > 1
    assert metrics.num_accepted_tokens == 60 - len([count for count in counts if count])
    assert metrics.num_draft_tokens >= metrics.num_accepted_tokens
    assert fast.speculation is not None
    assert fast.speculation.num_accepted_tokens >= metrics.num_accepted_tokens
    assert plain.speculation is None


def test_a_stream_that_is_left_leaves_nothing(plain: LLM, fast: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    for _ in range(2 * fast.max_batch):
        stream = fast.stream(TEXT, params)
        next(stream)
        next(stream)
        stream.close()
    assert fast.generate(TEXT, params)[0].outputs == plain.generate(TEXT, params)[0].outputs


def test_async_too(tiny_artifact: Path, plain: LLM) -> None:
    prompts = [TEXT, "another", TEXT + TEXT]
    params = [SamplingParams(temperature=0, max_tokens=count) for count in (60, 9, 12)]
    wanted = [each.outputs for each in plain.generate(prompts, params)]

    async def ask() -> None:
        async with AsyncLLM(tiny_artifact, threads=1, speculative_config=NGRAM) as llm:

            async def last(prompt: str, its: SamplingParams) -> Any:
                return [output async for output in llm.generate(prompt, its)][-1].outputs

            assert await asyncio.gather(*map(last, prompts, params)) == wanted
            assert llm.speculation is not None
            assert llm.speculation.num_draft_tokens > 0

    asyncio.run(ask())


def test_a_prefix_cache_is_forgotten_with_the_drafts(fast: LLM, plain: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=20)
    wanted = plain.generate(TEXT, params)[0].outputs
    assert fast.generate(TEXT, params)[0].outputs == wanted
    assert fast.reset_prefix_cache()
    assert fast.generate(TEXT, params)[0].outputs == wanted


@pytest.fixture
def draft(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "draft"))


def refused(artifact: Path, draft: Path, error: type[Exception], said: str) -> None:
    config = {"model": str(draft), "num_speculative_tokens": 4}
    with pytest.raises(error, match=said):
        LLM(artifact, threads=1, speculative_config=config)


def test_a_draft_with_another_tokenizer_is_refused(
    tiny_artifact: Path, draft: Path, manifest_writer: Any
) -> None:
    tokenizer = json.loads((draft / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (draft / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    entry = json_entry(tiny_artifact)
    manifest_writer(draft, entry)
    refused(
        tiny_artifact,
        draft,
        EnginewrightError,
        "has another tokenizer than its target: 2 of 258 tokens differ; draft with an artifact of",
    )


def test_a_draft_with_another_vocabulary_is_refused(
    tiny_artifact: Path, draft: Path, manifest_writer: Any
) -> None:
    manifest_writer(draft, dataclasses.replace(json_entry(tiny_artifact), vocab_size=300))
    refused(
        tiny_artifact, draft, EnginewrightError, "a vocabulary of 300 tokens, its target one of 258"
    )


def test_a_draft_that_does_not_load_is_named(tiny_artifact: Path, draft: Path) -> None:
    missing = draft / "nowhere"
    refused(
        tiny_artifact, missing, ArtifactNotFoundError, "speculative_config's model cannot be loaded"
    )


def test_an_engine_that_does_not_extend_cannot_check_drafts(
    tiny_artifact: Path, tmp_path: Path, manifest_writer: Any
) -> None:
    folder = Path(shutil.copytree(tiny_artifact, tmp_path / "fixed"))
    entry = json_entry(tiny_artifact)
    manifest_writer(
        folder, dataclasses.replace(entry, steps=dataclasses.replace(entry.steps, extend=0))
    )
    with pytest.raises(
        EnginewrightError, match="this engine computes one token of a row at a time"
    ):
        LLM(folder, threads=1, speculative_config=NGRAM)


def test_where_bits_differ_what_must_repeat_is_not_drafted(
    tiny_artifact: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = OnnxRuntimeEngine.describe
    monkeypatch.setattr(
        OnnxRuntimeEngine,
        "describe",
        lambda engine: dataclasses.replace(describe(engine), step_invariant=False),
    )
    params = [SamplingParams(temperature=0, max_tokens=40), SamplingParams(seed=1, max_tokens=40)]
    with (
        caplog.at_level(logging.WARNING),
        LLM(tiny_artifact, threads=1, speculative_config=NGRAM) as llm,
    ):
        llm.generate([TEXT, TEXT], params)
        assert llm.speculation is not None
        assert llm.speculation.num_drafts == 0
        llm.generate(TEXT, SamplingParams(temperature=0.01, max_tokens=40, ignore_eos=True))
        assert llm.speculation.num_drafts > 0
    assert "requests that must repeat" in caplog.text


def json_entry(artifact: Path) -> Any:
    from enginewright.runtime.artifact.artifact import Artifact

    return Artifact.open(artifact).engine()


@pytest.mark.parametrize("wrong", [{"quantization": "banana"}, {"revision": "no such"}])
def test_a_draft_that_is_not_what_was_asked_for_is_refused(
    tiny_artifact: Path, wrong: dict[str, str]
) -> None:
    config = {"model": str(tiny_artifact), "num_speculative_tokens": 4, **wrong}
    ((key, value),) = wrong.items()
    with pytest.raises(EnginewrightError, match=f"speculative_config: {key}='{value}'"):
        LLM(tiny_artifact, threads=1, speculative_config=config)
