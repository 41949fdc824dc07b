"""Numbers for Prometheus: what HTTP saw, and what the service counts.

Labels are routes, methods and statuses, of which there are few; never names or texts of clients.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response

from paligemma.server.responses import error_responses
from paligemma.server.service import Service
from paligemma.server.stats import Ended

_METHODS = {"GET", "HEAD", "POST", "OPTIONS"}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STATES = ("loading", "ready", "draining", "dead")


class Metrics:
    """One application's numbers."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "paligemma_http_requests",
            "Requests answered; status 499 is a client that hung up.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "paligemma_http_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._first_token_seconds = Histogram(
            "paligemma_first_token_seconds",
            "From acceptance to the first token of an answer.",
            ("task",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._answer_seconds = Histogram(
            "paligemma_answer_seconds",
            "From acceptance to the end of an answer.",
            ("task",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_ServiceNumbers(service))
        service.on_end = self.ended

    def saw(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def ended(self, ended: Ended) -> None:
        """Counts one answer; called in the service's threads."""
        if ended.first_token_seconds is not None:
            self._first_token_seconds.labels(ended.kind).observe(ended.first_token_seconds)
        if ended.outcome == "answered":
            self._answer_seconds.labels(ended.kind).observe(ended.seconds)


class _ServiceNumbers(Collector):
    """What the service counts by itself, asked for when somebody looks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        stats = self._service.stats()
        state = GaugeMetricFamily(
            "paligemma_state", "1 for the state that the service is in.", labels=["state"]
        )
        for name in _STATES:
            state.add_metric([name], float(name == stats.state))
        yield state
        for name, value, text in (
            ("queued", stats.waiting, "Answers accepted, without a token yet."),
            ("running", stats.running, "Answers being written."),
            ("max_running", stats.max_running, "Answers that can be written at a time."),
            ("image_cache_bytes", stats.image_cache_bytes, "Kept of pictures seen before."),
            ("prefix_cache_bytes", stats.prefix_cache_bytes, "Kept of prompts read before."),
            ("heartbeat_age_seconds", stats.heartbeat_age, "Since the engine was last seen."),
        ):
            yield GaugeMetricFamily(f"paligemma_{name}", text, value=float(value))
        outcomes = CounterMetricFamily(
            "paligemma_answers", "Answers by how they ended.", labels=["outcome"]
        )
        for name in ("answered", "failed", "cancelled", "expired"):
            outcomes.add_metric([name], float(getattr(stats, name)))
        yield outcomes
        tokens = CounterMetricFamily(
            "paligemma_tokens",
            "Tokens of ended answers: read (those of pictures included), and written.",
            labels=["kind"],
        )
        for kind in ("prompt", "image", "completion"):
            tokens.add_metric([kind], float(getattr(stats, f"{kind}_tokens")))
        yield tokens
        for name, value, text in (
            ("accepted", stats.accepted, "Answers accepted."),
            ("rejected", stats.rejected, "Answers refused because too much was waiting."),
            ("engine_steps", stats.steps, "Steps of the engine."),
            ("image_cache_hits", stats.image_cache_hits, "Pictures that need not be encoded."),
            ("image_cache_misses", stats.image_cache_misses, "Pictures that were encoded."),
            ("prefix_cache_hits", stats.prefix_cache_hits, "Prompts that need not be read again."),
            ("prefix_cache_misses", stats.prefix_cache_misses, "Prompts that were read."),
        ):
            yield CounterMetricFamily(f"paligemma_{name}", text, value=float(value))


def metrics_routes(metrics: Metrics) -> APIRouter:
    """`/metrics`."""
    router = APIRouter(tags=["server"])

    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {
                "description": "Counters, gauges and histograms.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **error_responses(401, 403, 421, 431, 500),
        },
    )
    async def numbers() -> Response:
        """Counters, gauges and histograms in Prometheus' text format."""
        data = generate_latest(metrics.registry)
        return Response(data, headers={"content-type": CONTENT_TYPE_LATEST})

    return router
