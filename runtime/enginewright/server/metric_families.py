"""What is read of engines and counters when somebody asks for the metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from enginewright.runtime import EngineStats

if TYPE_CHECKING:
    from enginewright.server.metrics import ModelMetrics

PREFIX = "enginewright:"
_LABEL = "model_name"


def families(models: Sequence[ModelMetrics]) -> Iterator[Metric]:
    """All that are no histograms of requests."""
    yield from _counters(models)
    yield from _gauges(models)
    yield _step_tokens(models)
    yield _cache_config(models)


def _counters(models: Sequence[ModelMetrics]) -> Iterator[Metric]:
    def family(name: str, told: str, labels: Sequence[str] = ()) -> CounterMetricFamily:
        return CounterMetricFamily(PREFIX + name, told, labels=[_LABEL, *labels])

    plain = {
        "prompt_tokens": ("Tokens of prompts.", "prompt_tokens"),
        "generation_tokens": ("Tokens of outputs.", "generation_tokens"),
        "prefix_cache_queries": ("Tokens that were looked for.", "prompt_tokens"),
        "prefix_cache_hits": ("Tokens that were found in the cache.", "cached_tokens"),
    }
    for name, (told, attribute) in plain.items():
        found = family(name, told)
        for each in models:
            found.add_metric([each.model.name], getattr(each, attribute))
        yield found
    ended = family("request_success", "Outputs that ended, by reason.", ["finished_reason"])
    rejected = family("admission_rejections", "Requests refused, for too many waited.")
    preempted = family("num_preemptions", "How often a row gave up its room.")
    for each in models:
        for reason, count in each.ended.items():
            ended.add_metric([each.model.name, reason], count)
        rejected.add_metric([each.model.name], each.model.rejected)
        preempted.add_metric([each.model.name], each.stats.preemptions if each.stats else 0)
    yield from (ended, rejected, preempted)


def _gauges(models: Sequence[ModelMetrics]) -> Iterator[Metric]:
    told = {
        "num_requests_running": "Outputs in the engine's steps.",
        "num_requests_waiting": "Outputs that wait for room.",
        "kv_cache_usage_perc": "Part of the cache that running outputs hold; 1 is all.",
        "model_load_seconds": "From the start of loading until requests were taken.",
        "engine_up": "Whether the engine takes requests.",
    }
    found = {
        name: GaugeMetricFamily(PREFIX + name, line, labels=[_LABEL]) for name, line in told.items()
    }
    for each in models:
        stats = each.stats or EngineStats()
        values = (stats.running, stats.waiting, stats.cache_usage, each.model.load_seconds)
        for family, value in zip(found.values(), (*values, float(each.model.ready)), strict=True):
            family.add_metric([each.model.name], value)
    yield from found.values()


def _step_tokens(models: Sequence[ModelMetrics]) -> Metric:
    family = HistogramMetricFamily(
        f"{PREFIX}iteration_tokens_total", "Tokens that a step computed.", labels=[_LABEL]
    )
    for each in models:
        seen = (each.stats or EngineStats()).step_tokens
        bounds = [*map(str, map(float, seen.bounds)), "+Inf"]
        buckets = list(zip(bounds, accumulate(seen.counts), strict=True))
        family.add_metric([each.model.name], buckets, seen.total)
    return family


def _cache_config(models: Sequence[ModelMetrics]) -> Metric:
    family = InfoMetricFamily(
        f"{PREFIX}cache_config", "How the cache is laid out, and its bounds.", labels=[_LABEL]
    )
    for each in models:
        info, options = each.model.engine.engine_info, each.model.options
        told = {
            "layout": info.kv_layout,
            "block_size": info.kv_block_size or None,
            "bytes_per_token": info.kv_bytes_per_token,
            "max_num_seqs": info.max_batch,
            "max_model_len": info.max_context,
            "kv_cache_memory_bytes": options.kv_cache_memory_bytes,
            "enable_prefix_caching": options.enable_prefix_caching,
        }
        family.add_metric([each.model.name], {name: str(value) for name, value in told.items()})
    return family
