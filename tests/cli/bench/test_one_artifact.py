"""``bench latency``, ``throughput``, ``memory``, ``roofline``: what each tells of an artifact."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from enginewright.cli.bench import latency, memory, throughput
from enginewright.cli.bench.children import Sample
from enginewright.cli.bench.roofline import Step, page, probe_figures, step_bytes
from enginewright.cli.bench.stats import Figure
from enginewright.cli.bench.turns import Samples
from enginewright.cli.bench.workload import weight_bytes
from enginewright.cli.main import main
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import KVEntry

ONCE = ["--runs", "1", "--threads", "1", "--json"]


def run(verb: str, artifact: Path, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["bench", verb, str(artifact), *options, *ONCE])
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def sample(**said: Any) -> Sample:
    return Sample(said, 0.0, 1.0, None, None, 0.0)


def medians(found: list[Figure]) -> dict[str, float]:
    return {f"{one.name} ({one.unit})": one.median for one in found}


def test_latency_tells_the_first_token_from_the_others() -> None:
    streams = [{"first_s": 0.5, "between_s": [0.01] * 9 + [0.11]}]
    told = medians(latency.figures([64], [sample(streams=streams)]))

    assert told == pytest.approx(
        {
            "first token of 64 (ms)": 500,
            "prefill 64 (tokens/s)": 128,
            "between tokens at 64, p50 (ms)": 10,
            "between tokens at 64, p90 (ms)": 20,
            "between tokens at 64, p99 (ms)": 101,
        }
    )


def test_latency_of_a_real_stream(tiny_artifact: Path) -> None:
    told = run("latency", tiny_artifact, "--context", "20", "--context", "40", "--tokens", "5")

    assert {"first token of 20", "prefill 40", "between tokens at 40, p99"} <= told[
        "figures"
    ].keys()
    assert all(figure["median"] > 0 for figure in told["figures"].values())


def test_contexts_that_fit_are_measured_and_asked_for_ones_must() -> None:
    assert latency.fitting((), 5000) == [64, 512, 4096]
    assert latency.fitting((100, 7), 100) == [100, 7]
    with pytest.raises(click.UsageError, match="--context 101"):
        latency.fitting((101,), 100)
    with pytest.raises(click.UsageError, match="--context 50"):
        latency.fitting((), 50)


def test_throughput_counts_output_tokens_over_the_whole_time() -> None:
    load = {"wall_s": 2.0, "output_tokens": 30, "first_s": [0.1, 0.3], "between_s": [0.02]}
    said = sample(loops=[load], arriving={**load, "wall_s": 3.0, "rate": 1.5})
    told = medians(throughput.figures([8], [said]))

    assert told["8 streams (tokens/s)"] == 15
    assert told["8 streams, first token, p50 (ms)"] == pytest.approx(200)
    assert told["arriving (requests/s)"] == 1.5
    assert told["arriving (tokens/s)"] == 10


def test_throughput_of_real_requests(tiny_artifact: Path) -> None:
    told = run("throughput", tiny_artifact, "--streams", "1", "--streams", "4", "--rate", "50")

    assert told["figures"]["arriving"]["unit"] == "tokens/s"
    assert {"1 stream", "4 streams", "4 streams, first token, p99"} <= told["figures"].keys()
    assert all(figure["median"] > 0 for figure in told["figures"].values())


def test_requests_fit_the_engine_and_are_mixed(tiny_artifact: Path) -> None:
    manifest = Artifact.open(tiny_artifact).manifest
    made = throughput.requests(manifest, random.Random(1), 40)

    assert all(len(one["ids"]) + one["tokens"] <= 600 for one in made)
    assert len({(len(one["ids"]), one["tokens"]) for one in made}) > 4
    assert made == throughput.requests(manifest, random.Random(1), 40)


def test_memory_beyond_the_weights_is_what_their_files_do_not_back() -> None:
    said = [{"peak": 300_000_000, "anonymous": 90_000_000, "mapped": 100_000_000}]
    assert medians(memory.figures("loaded", said)) == {
        "loaded, peak (MB)": 300,
        "loaded, anonymous (MB)": 90,
        "loaded, beyond the weights (MB)": 200,
    }


def test_memory_of_a_real_process(tiny_artifact: Path) -> None:
    told = run("memory", tiny_artifact)["figures"]

    assert told["weights"]["median"] == weight_bytes(Artifact.open(tiny_artifact)) / 1e6
    loaded, worked = (told[f"{stage}, peak"]["median"] for stage in ("loaded", "24 rows"))
    assert 0 < loaded <= worked
    beyond = told["24 rows, beyond the weights"]["median"]
    assert 0 < beyond < worked, "the weights are mapped and were used"


def test_a_step_reads_the_weights_once_and_every_cache() -> None:
    kv = KVEntry("paged", layers=3, kv_heads=2, head_dim=5, dtype="float16")
    assert step_bytes(1000, kv, rows=1, context=0) == 1000
    assert step_bytes(1000, kv, rows=4, context=7) == 1000 + 4 * 7 * (2 * 3 * 2 * 5) * 2


def test_the_share_of_the_floor_is_of_the_best_bandwidth() -> None:
    step = Step(8, 512, 10_000_000, Figure("step", "ms", (2.0, 4.0, 3.0)))
    probes = {
        "1 threads": Samples([sample(read_bytes_per_s=5e9, flops=1e9)], 0, noisy=False),
        "2 threads": Samples([sample(read_bytes_per_s=10e9, flops=2e9)], 0, noisy=False),
    }
    assert step.floor(10e9) == pytest.approx(1)
    assert step.share(10e9) == pytest.approx(1 / 3)
    assert medians(probe_figures("2 threads", probes["2 threads"].used)) == {
        "read, 2 threads (GB/s)": 10,
        "fp32 product, 2 threads (GFLOP/s)": 2,
    }
    last = "\n".join(page("tiny", probes, [step])).splitlines()[-1]
    assert " ".join(last.split()) == "8 rows at 512 10 1.00 3 (2 - 4) 33%"


def test_the_roofline_of_a_real_engine(tiny_artifact: Path) -> None:
    told = run("roofline", tiny_artifact)

    assert told["figures"]["read, 1 threads"]["median"] > 0
    assert [(one["rows"], one["context"]) for one in told["steps"]] == [(1, 64), (1, 512), (8, 512)]
    for one in told["steps"]:
        assert one["step_ms"]["median"] > 0
        assert one["share_of_floor"] == pytest.approx(one["floor_ms"] / one["step_ms"]["median"])


def test_the_profile_of_a_real_step_names_every_operator(tiny_artifact: Path) -> None:
    told = run("profile", tiny_artifact, "--rows", "2", "--context", "20")

    layers = Artifact.open(tiny_artifact).engine().kv.layers
    attention = told["operators"]["GroupQueryAttention"]
    assert attention["nodes"] == layers
    assert 0 < attention["ms"]["median"] < told["step_ms"]["median"] * 10
    assert "plan plain" in told["what"]


@pytest.mark.parametrize("option", [("--rows", "1000"), ("--context", "100000")])
def test_a_profile_beyond_the_limits_is_refused(
    tiny_artifact: Path, option: tuple[str, str]
) -> None:
    result = CliRunner().invoke(main, ["bench", "profile", str(tiny_artifact), *option])
    assert result.exit_code == 2
    assert f"{option[0]} {option[1]}: this engine" in result.output
