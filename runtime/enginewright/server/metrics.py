"""What is measured, under vLLM's names with the prefix ``enginewright:``."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter as Tally
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from enginewright.runtime import BeamSearchParams, EngineStats, RequestMetrics, RequestOutput
from enginewright.runtime.errors import EnginewrightError
from enginewright.server.access_log import Record
from enginewright.server.metric_families import PREFIX, families
from enginewright.server.registry import ServedModel, ServedModels
from enginewright.server.serving.sampling import Params

_PATIENCE = 2.0
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 10)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_COUNT = (1, 2, 5, 10, 20, 50, 100)

_HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": ("From arrival to the first token.", _SECONDS),
    "inter_token_latency_seconds": ("Between two tokens of an output.", _BETWEEN),
    "request_time_per_output_token_seconds": ("Mean of a request.", _BETWEEN),
    "e2e_request_latency_seconds": ("From arrival to the end.", _SECONDS),
    "request_queue_time_seconds": ("From arrival until the engine took it up.", _SECONDS),
    "request_prefill_time_seconds": ("From there to the first token.", _SECONDS),
    "request_decode_time_seconds": ("From the first token to the last.", _SECONDS),
    "request_inference_time_seconds": ("Prefill and decode together.", _SECONDS),
    "request_prompt_tokens": ("Tokens of a prompt.", _TOKENS),
    "request_generation_tokens": ("Tokens of all outputs of a prompt.", _TOKENS),
    "request_params_n": ("The parameter n.", _COUNT),
    "request_params_max_tokens": ("The parameter max_tokens, where it is given.", _TOKENS),
}


class ModelMetrics:
    """Of one model. Counts are plain numbers, read when they are asked for."""

    def __init__(self, model: ServedModel, registry: CollectorRegistry) -> None:
        self.model = model
        self.prompt_tokens = self.generation_tokens = self.cached_tokens = 0
        self.ended: Tally[str] = Tally()
        self.histograms: dict[str, Histogram] = {}
        self.stats: EngineStats | None = None

    def watch(self, params: Params, record: Record, prompt_tokens: int) -> Watch:
        """What counts one prompt."""
        record.model = self.model.name
        record.prompt_tokens += prompt_tokens
        return Watch(self, params, record)


class Watch:
    """Counts one prompt's outputs as they come."""

    def __init__(self, metrics: ModelMetrics, params: Params, record: Record) -> None:
        self._metrics, self._params, self._record = metrics, params, record
        self._started, self._last = time.perf_counter(), 0.0
        self._first, self._made, self._ended = 0.0, 0, False
        self._told: RequestMetrics | None = None
        self._between = metrics.histograms["inter_token_latency_seconds"]

    def take(self, output: RequestOutput) -> None:
        """Note what came."""
        now = time.perf_counter()
        made = sum(len(each.token_ids) for each in output.outputs)
        if self._first:
            steps = max(1, math.ceil(made / max(1, len(output.outputs))))
            self._between.observe((now - self._last) / steps)
        else:
            self._begin(output)
        self._last = now
        self._made += made
        self._metrics.generation_tokens += made
        self._record.output_tokens += made
        for each in output.outputs:
            if each.finish_reason is not None:
                self._metrics.ended[each.finish_reason] += 1
        self._ended, self._told = output.finished, output.metrics

    def end(self) -> None:
        """The prompt has ended, one way or another."""
        if not self._ended:
            self._metrics.ended["abort"] += 1
            return
        seen, metrics = time.perf_counter(), self._metrics.histograms
        metrics["e2e_request_latency_seconds"].observe(seen - self._started)
        metrics["request_generation_tokens"].observe(self._made)
        self._observe_phases()
        if self._made > 1 and self._last > self._first:
            each = (self._last - self._first) / (self._made - 1)
            metrics["request_time_per_output_token_seconds"].observe(each)

    def _observe_phases(self) -> None:
        """By the engine's own moments; a prompt that failed before its first token has none."""
        told = self._told
        if told is None or told.first_scheduled_time is None or told.first_token_time is None:
            return
        assert told.finished_time is not None
        seconds = {
            "queue": told.first_scheduled_time - told.arrival_time,
            "prefill": told.first_token_time - told.first_scheduled_time,
            "decode": told.finished_time - told.first_token_time,
            "inference": told.finished_time - told.first_scheduled_time,
        }
        for phase, each in seconds.items():
            self._metrics.histograms[f"request_{phase}_time_seconds"].observe(each)

    def _begin(self, output: RequestOutput) -> None:
        """The first output; of one that is told at its end, when its first token came."""
        told = output.metrics.first_token_time if output.metrics else None
        self._first = told or time.perf_counter()
        record, metrics, found = self._record, self._metrics, self._metrics.histograms
        record.first_token_at = record.first_token_at or self._first
        count, cached = len(output.prompt_token_ids), output.num_cached_tokens or 0
        record.cached_tokens += cached
        metrics.prompt_tokens += count
        metrics.cached_tokens += cached
        found["time_to_first_token_seconds"].observe(self._first - self._started)
        found["request_prompt_tokens"].observe(count)
        params = self._params
        count = params.beam_width if isinstance(params, BeamSearchParams) else params.n
        found["request_params_n"].observe(count)
        if params.max_tokens is not None:
            found["request_params_max_tokens"].observe(params.max_tokens)


class Metrics(Collector):
    """Of all models of a server."""

    def __init__(self, models: ServedModels) -> None:
        self.registry = CollectorRegistry()
        self._models = [ModelMetrics(model, self.registry) for model in models]
        self._by_model = {id(each.model): each for each in self._models}
        for name, (told, buckets) in _HISTOGRAMS.items():
            histogram = Histogram(
                PREFIX + name, told, ["model_name"], registry=self.registry, buckets=buckets
            )
            for each in self._models:
                each.histograms[name] = histogram.labels(each.model.name)
        self.registry.register(self)

    def of(self, model: ServedModel) -> ModelMetrics:
        """Those of one model."""
        return self._by_model[id(model)]

    async def refresh(self) -> None:
        """Ask the engines how they stand."""
        for each in self._models:
            if each.model.ready:
                with contextlib.suppress(TimeoutError, EnginewrightError):
                    async with asyncio.timeout(_PATIENCE):  # a step may take long
                        each.stats = await each.model.engine.stats()

    def collect(self) -> Iterable[Metric]:
        return families(self._models)
