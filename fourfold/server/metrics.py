"""Prometheus metrics, named as vLLM names those of the same meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from fourfold.server.backend import Backend

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0, 20.0)
_TOKENS = tuple(float(4**power) for power in range(1, 11))


class Metrics:
    """Those of one server and its engine."""

    def __init__(self, model: str, engine: Backend) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(model, engine))
        self._model = model
        histogram, counter = self._histogram, self._counter
        self.first_token = histogram(
            "time_to_first_token_seconds", "From the request to its first token.", _SECONDS
        )
        self.between_tokens = histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", _GAPS
        )
        self.whole = histogram(
            "e2e_request_latency_seconds", "From the request to the end of its answers.", _SECONDS
        )
        self.queue = histogram(
            "request_queue_time_seconds", "To the first token, without the steps of the prompt.", _SECONDS
        )
        self.prompt_sizes = histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answer_sizes = histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.").labels(model)
        self.answer_tokens = counter("generation_tokens", "Tokens of answers.").labels(model)
        self.vanished = counter("disconnected_requests", "Requests whose client went away.").labels(model)
        self.slow = counter("slow_readers", "Streams given up because nobody read them.").labels(model)
        self.shed = counter("shed_requests", "Requests refused for overload.").labels(model)
        self._finished = counter("request_success", "Answers that ended.", "finished_reason")
        self._http = counter("http_requests", "HTTP requests.", "method", "path", "status")

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(f"fourfold:{name}", about, ["model_name"], registry=self._registry, buckets=buckets)
        return made.labels(self._model)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"fourfold:{name}", about, ["model_name", *labels], registry=self._registry)

    def finished(self, reason: str) -> None:
        self._finished.labels(self._model, reason).inc()

    def http(self, method: str, path: str, status: int) -> None:
        """path: of a route of ours, since what clients make up has no end."""
        self._http.labels(self._model, method, path, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Engine(Collector):
    """What the engine counts itself, read when somebody asks."""

    def __init__(self, model: str, engine: Backend) -> None:
        self._model = model
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        held = stats.blocks - stats.blocks_free - stats.blocks_cached
        computed, cached = stats.counters.computed_tokens, stats.counters.cached_tokens
        gauges: dict[str, tuple[str, float]] = {
            "num_requests_running": ("Requests that are computed.", stats.running),
            "num_requests_waiting": ("Requests that wait.", stats.waiting),
            "kv_cache_usage_perc": ("Share of the cache that requests hold.", held / max(1, stats.blocks)),
            "kv_cache_reusable_perc": (
                "Share of the cache that holds prefixes which no request uses now.",
                stats.blocks_cached / max(1, stats.blocks),
            ),
            "prefix_snapshots": ("States that a prompt can start from.", stats.snapshots),
            "kv_cache_bytes": ("Memory of the cache.", stats.cache_bytes),
        }
        counters: dict[str, tuple[str, float]] = {
            "prefix_cache_queries": ("Tokens looked for in the prefix cache.", computed + cached),
            "prefix_cache_hits": ("Tokens found in it.", cached),
            "num_preemptions": ("Requests put aside for others.", stats.counters.preempted),
            "spec_decode_num_draft_tokens": ("Tokens guessed and verified.", stats.counters.drafted),
            "spec_decode_num_accepted_tokens": ("Those that were right.", stats.counters.accepted),
            "engine_steps": ("Forward passes.", stats.counters.steps),
            "engine_restarts": ("Engines that took the place of one that had ended.", self._engine.restarts),
        }
        if (tiers := stats.tiers) is not None:
            gauges |= {
                "experts": ("Routed experts of all layers.", tiers.experts),
                "expert_slots": ("Of them, as many as RAM holds at once.", tiers.slots),
                "experts_on_device": ("Of them, on the device.", tiers.on_device),
            }
            counters |= {
                "expert_hits": ("Experts that were needed and in RAM.", tiers.hits + tiers.device_hits),
                "expert_prefetched": ("Experts whose read had begun before.", tiers.prefetched),
                "expert_misses": ("Experts that were waited for.", tiers.misses),
                "expert_bytes_read": ("Bytes of experts read from disk.", tiers.bytes_read),
                "expert_stall_seconds": ("Time waited for experts.", tiers.stall_seconds),
            }
        for name, (about, value) in gauges.items():
            gauge = GaugeMetricFamily(f"fourfold:{name}", about, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        for name, (about, value) in counters.items():
            counter = CounterMetricFamily(f"fourfold:{name}", about, labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter
