"""Prometheus metrics of a server."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from tara.inference.engine import Engine, EngineStep
from tara.server.jobs import Jobs


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, jobs: Jobs) -> None:
        self._registry = CollectorRegistry()
        engine = jobs.engine
        for name, description, value in (
            ("tara_images_waiting", "Images that wait for rows", lambda: engine.waiting),
            ("tara_rows_in_flight", "Rows of the images in flight", lambda: engine.rows_in_flight),
            ("tara_rows_max", "Rows that may be in flight", lambda: engine.rows),
            ("tara_prepared_bytes", "Memory of prepared prompts", lambda: engine.cached_bytes),
        ):
            Gauge(name, description, registry=self._registry).set_function(value)
        self._seconds = Histogram("tara_step_seconds", "Time of a denoising step of the batch", registry=self._registry)
        self._rows = Counter("tara_rows", "Rows of all network calls", registry=self._registry)
        self._joining = Counter("tara_joining_seconds", "Time of joining keys and values", registry=self._registry)
        self.refused = Counter("tara_refused", "Requests that were refused", ["status"], registry=self._registry)
        self._registry.register(_Prepared(engine))
        jobs.on_step = self._note_step

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _note_step(self, step: EngineStep) -> None:
        self._seconds.observe(step.seconds)
        self._rows.inc(step.rows)
        self._joining.inc(step.joining_seconds)


class _Prepared(Collector):
    """What the engine has counted of its cache of prepared prompts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily("tara_prepared_hits", "Prompts that were prepared", value=self._engine.cache_hits)
        yield CounterMetricFamily("tara_prepared_misses", "Prompts to prepare", value=self._engine.cache_misses)
