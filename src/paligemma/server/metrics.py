"""Prometheus metrics of HTTP requests and of the service.

Labels are routes, methods, statuses and tasks, which are few, and never text from clients.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response

from paligemma.server.jobs import Ended
from paligemma.server.responses import error_responses
from paligemma.server.service import Service

_METHODS = {"GET", "HEAD", "POST", "OPTIONS"}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STATES = ("loading", "ready", "draining", "dead")


class Metrics:
    """The metrics of one application."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # CPU seconds, memory, open files
        self._requests = Counter(
            "paligemma_http_requests",
            "Answered requests; status 499 is a client that disconnected.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = self._histogram(
            "paligemma_http_request_seconds",
            "Seconds from the first byte of a request to the last byte of its answer.",
            "route",
        )
        self._first_token_seconds = self._histogram(
            "paligemma_first_token_seconds",
            "Seconds from acceptance to the first token of an answer.",
            "task",
        )
        self._answer_seconds = self._histogram(
            "paligemma_answer_seconds", "Seconds from acceptance to the end of an answer.", "task"
        )
        self.registry.register(_ServiceCollector(service))
        service.on_end = self.count_job

    def _histogram(self, name: str, text: str, label: str) -> Histogram:
        return Histogram(name, text, (label,), buckets=_SECONDS, registry=self.registry)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_job(self, ended: Ended) -> None:
        """Count one job that has ended; called in the service's threads."""
        if ended.first_token_seconds is not None:
            self._first_token_seconds.labels(ended.kind).observe(ended.first_token_seconds)
        if ended.outcome == "answered":
            self._answer_seconds.labels(ended.kind).observe(ended.seconds)


class _ServiceCollector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        stats = self._service.stats()
        state = GaugeMetricFamily(
            "paligemma_state", "1 for the current state of the service, else 0.", labels=["state"]
        )
        for name in _STATES:
            state.add_metric([name], float(name == stats.state))
        yield state
        for name, value, text in (
            ("queued", stats.waiting, "Accepted jobs without a token yet."),
            ("running", stats.running, "Jobs whose answers are being generated."),
            ("max_running", stats.max_running, "Maximum number of running jobs."),
            ("image_cache_bytes", stats.image_cache_bytes, "Size of the image cache."),
            ("prefix_cache_bytes", stats.prefix_cache_bytes, "Size of the prefix cache."),
            ("heartbeat_age_seconds", stats.heartbeat_age, "Seconds since the engine's last step."),
        ):
            yield GaugeMetricFamily(f"paligemma_{name}", text, value=float(value))
        outcomes = CounterMetricFamily("paligemma_answers", "Jobs by outcome.", labels=["outcome"])
        for name in ("answered", "failed", "cancelled", "expired"):
            outcomes.add_metric([name], float(getattr(stats, name)))
        yield outcomes
        tokens = CounterMetricFamily(
            "paligemma_tokens",
            "Tokens of ended jobs by kind; prompt tokens include image tokens.",
            labels=["kind"],
        )
        for kind in ("prompt", "image", "completion"):
            tokens.add_metric([kind], float(getattr(stats, f"{kind}_tokens")))
        yield tokens
        for name, value, text in (
            ("accepted", stats.accepted, "Accepted jobs."),
            ("rejected", stats.rejected, "Jobs refused because too many were waiting."),
            ("engine_steps", stats.steps, "Engine steps."),
            ("image_cache_hits", stats.image_cache_hits, "Images found in the cache."),
            ("image_cache_misses", stats.image_cache_misses, "Images that were encoded."),
            ("prefix_cache_hits", stats.prefix_cache_hits, "Prefixes found in the cache."),
            ("prefix_cache_misses", stats.prefix_cache_misses, "Prefixes that were computed."),
        ):
            yield CounterMetricFamily(f"paligemma_{name}", text, value=float(value))


class _WithoutCreated:
    """A registry without the `_created` time of each counter, which nobody plots."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


def metrics_routes(metrics: Metrics) -> APIRouter:
    """`/metrics`."""
    router = APIRouter(tags=["server"])

    @router.get(
        "/metrics",
        name="metrics",
        response_class=Response,
        responses={
            200: {
                "description": "Counters, gauges and histograms.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **error_responses(401, 403, 421, 431, 500),
        },
    )
    async def metrics_text() -> Response:
        """Counters, gauges and histograms in Prometheus' text format."""
        data = generate_latest(_WithoutCreated(metrics.registry))
        return Response(data, headers={"content-type": CONTENT_TYPE_LATEST})

    return router
