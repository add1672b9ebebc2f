"""Speculation on the real SmolLM2: where text repeats it pays, and no id changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from enginewright.builder.targets.operators import find_compiler
from enginewright.cli.bench.speculation import QUESTIONS
from enginewright.cli.main import main
from enginewright.runtime import LLM, BeamSearchParams, SamplingParams
from enginewright.runtime.speculation.governor import Governor

Build = Callable[[str], Path]

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is proposed is drafted, so that nothing depends on the clock."""
    monkeypatch.setattr(Governor, "choose", lambda self, lengths, batch, each=0.0: dict(lengths))


@pytest.fixture(scope="module", params=["int4", "int8"])
def artifact(request: pytest.FixtureRequest, built: Build) -> Path:
    return built(f"cpu-{request.param}")


@pytest.fixture(scope="module")
def plain(artifact: Path) -> Iterator[LLM]:
    with LLM(artifact) as llm:
        assert llm.engine_info.step_invariant
        yield llm


CONFIGS = {
    "ngram": {"method": "ngram", "num_speculative_tokens": 6},
    "draft": {"num_speculative_tokens": 3},
}


@pytest.mark.parametrize("method", CONFIGS)
def test_no_id_changes(plain: LLM, artifact: Path, built: Build, method: str) -> None:
    config = CONFIGS[method] | ({"model": built("cpu-int4")} if method == "draft" else {})
    conversations = [[{"role": "user", "content": text}] for text in QUESTIONS.values()]
    params = [
        SamplingParams(temperature=0, max_tokens=28),
        SamplingParams(temperature=0.7, seed=5, max_tokens=28),
        SamplingParams(temperature=0, max_tokens=20, logprobs=2, presence_penalty=0.2),
        SamplingParams(temperature=1.0, seed=2, n=2, max_tokens=12),
    ]
    with LLM(artifact, speculative_config=config) as fast:
        together = [each.outputs for each in fast.chat(conversations, params)]
        assert together == [each.outputs for each in plain.chat(conversations, params)]
        for conversation, each in zip(conversations, params, strict=True):
            alone = fast.chat(conversation, each)[0].outputs
            assert alone == plain.chat(conversation, each)[0].outputs


def test_beams_run_beside_drafts(plain: LLM, artifact: Path) -> None:
    prompts = [f"{QUESTIONS['repeat']}\n\n", "one two three one two three one"]
    params = SamplingParams(temperature=0, max_tokens=24)
    beams = BeamSearchParams(beam_width=3, max_tokens=12)
    with LLM(artifact, speculative_config=CONFIGS["ngram"]) as fast:
        fast.enqueue(prompts, params)
        (found,) = fast.beam_search(prompts[1:], beams)
        outputs = [each.outputs for each in fast.wait_for_completion()]
        assert fast.speculation is not None
        assert fast.speculation.num_accepted_tokens > 0
    (wanted,) = plain.beam_search(prompts[1:], beams)
    assert [each.tokens for each in found.sequences] == [each.tokens for each in wanted.sequences]
    assert outputs == [each.outputs for each in plain.generate(prompts, params)]


def test_the_measurement_runs(artifact: Path) -> None:
    arguments = ["bench", "speculation", str(artifact), "--tokens", "8", "--rounds", "1"]
    result = CliRunner().invoke(main, [*arguments, "--runs", "1", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)["figures"]
    assert {f"{name}, speed" for name in QUESTIONS} <= said.keys()


def test_what_repeats_its_prompt_takes_few_steps(artifact: Path) -> None:
    asked = [{"role": "user", "content": QUESTIONS["repeat"]}]
    params = SamplingParams(temperature=0, max_tokens=160)
    with LLM(artifact, speculative_config=CONFIGS["ngram"]) as fast:
        (output,) = fast.chat(asked, params)
    assert output.metrics is not None
    assert output.metrics.num_accepted_tokens > len(output.outputs[0].token_ids) / 3
