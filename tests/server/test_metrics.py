"""/metrics: vLLM's names, and numbers that fit each other."""

from __future__ import annotations

import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import Running, Serve

LONG: Any = {"ignore_eos": True}
PHASES = ("queue", "prefill", "decode", "inference")


class Samples:
    """What the server tells of its only model."""

    def __init__(self, server: Running) -> None:
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            families = text_string_to_metric_families(answer.read().decode())
        self._all = [sample for family in families for sample in family.samples]

    def labels(self, name: str) -> dict[str, str]:
        (found,) = [each.labels for each in self._all if each.name == f"enginewright:{name}"]
        return dict(found)

    def __call__(self, name: str, **labels: str) -> float:
        (found,) = [
            each.value
            for each in self._all
            if each.name == f"enginewright:{name}" and labels.items() <= each.labels.items()
        ]
        return float(found)


def test_every_request_is_in_the_histograms_of_its_phases(serve: Serve) -> None:
    with serve(served_model_name="tiny") as server, server.client() as client:
        asked: Any = {"model": "tiny", "prompt": "Call me", "max_tokens": 9}
        client.completions.create(**asked, extra_body=LONG)
        client.completions.create(**asked, n=3, seed=1, extra_body=LONG)
        client.completions.create(**asked, n=2, extra_body={"use_beam_search": True, **LONG})
        list(client.completions.create(**asked, stream=True, extra_body=LONG))
        told = Samples(server)
    for name in ("time_to_first_token", "e2e_request_latency"):
        assert told(f"{name}_seconds_count") == 4
    seconds = {}
    for phase in PHASES:
        assert told(f"request_{phase}_time_seconds_count") == 4
        seconds[phase] = told(f"request_{phase}_time_seconds_sum")
        assert seconds[phase] > 0
    assert seconds["inference"] == pytest.approx(seconds["prefill"] + seconds["decode"])
    assert seconds["queue"] + seconds["inference"] <= told("e2e_request_latency_seconds_sum")
    assert told("request_params_n_sum") == 1 + 3 + 2 + 1
    assert told("request_params_max_tokens_sum") == 4 * 9


def test_what_waits_for_another_is_in_the_queue(serve: Serve) -> None:
    """Of three that came together and run one by one, the last waits for two."""
    with serve(served_model_name="tiny", max_num_seqs=1) as server, server.client() as client:
        prompts = ["Call me Ishmael.", "Some years ago", "having little money"]
        asked: Any = {"model": "tiny", "prompt": prompts, "max_tokens": 200, "extra_body": LONG}
        client.completions.create(**asked)
        told = Samples(server)
    assert told("request_queue_time_seconds_count") == 3
    waited = told("request_queue_time_seconds_sum")
    assert waited > told("request_inference_time_seconds_sum") / 3


def test_steps_are_counted_by_their_tokens(serve: Serve) -> None:
    with serve(served_model_name="tiny") as server, server.client() as client:
        assert Samples(server)("iteration_tokens_total_count") == 0
        asked: Any = {"model": "tiny", "prompt": [5] * 40, "max_tokens": 7, "extra_body": LONG}
        client.completions.create(**asked)
        told = Samples(server)
    # The prompt in one step, then each token of the output but the last in one.
    assert told("iteration_tokens_total_count") == 7
    assert told("iteration_tokens_total_sum") == 46
    for bound, count in (("1.0", 6), ("32.0", 6), ("64.0", 7), ("16384.0", 7), ("+Inf", 7)):
        assert told("iteration_tokens_total_bucket", le=bound) == count


def test_the_cache_is_described(serve: Serve) -> None:
    limits = {"max_num_seqs": 3, "max_model_len": 200, "enable_prefix_caching": False}
    with serve(served_model_name="tiny", **limits) as server:
        told = Samples(server).labels("cache_config_info")
        info = next(iter(server.models)).engine.engine_info
    assert told == {
        "model_name": "tiny",
        "layout": info.kv_layout,
        "block_size": str(info.kv_block_size or None),
        "bytes_per_token": str(info.kv_bytes_per_token),
        "max_num_seqs": "3",
        "max_model_len": "200",
        "kv_cache_memory_bytes": "None",
        "enable_prefix_caching": "False",
    }
