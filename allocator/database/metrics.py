"""The metrics of `reconcile --watch`, in Prometheus's format, at an address of their own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from allocator.client.counts import serve_registry
from allocator.database.drift import Kind
from allocator.model.errors import AllocatorError, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

    from allocator.database.reconciler import Report


class PrometheusGauge:
    """Takes in what the loop does.

    Args:
        registry: Where the metrics are registered.
        pool: The pool, a label of each.
    """

    def __init__(self, registry: CollectorRegistry, pool: str) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"allocator_reconcile_{name}", text, ["pool"], registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"allocator_reconcile_{name}", text, ["pool", *labels], registry=registry)

        self._pool = pool
        self._leader = gauge("leader", "Whether this reconciler leads").labels(pool)
        self._leases = gauge("leases", "Live leases in the last whole pass").labels(pool)
        self._refused = gauge("refused_rows", "Rows that the database refused in the last whole pass").labels(pool)
        self._last = gauge("last_pass_timestamp_seconds", "When the last whole pass ended").labels(pool)
        self._drift = Gauge(
            "allocator_reconcile_drift", "Differences met in the last whole pass", ["pool", "kind"], registry=registry
        )
        self._lag = gauge("event_lag_seconds", "Age of the last event when its worker was settled").labels(pool)
        self._written = counter("rows_written", "Rows written or stopped").labels(pool)
        self._outages = counter("outages", "Attempts that met no Redis or no database", "of")
        self._passes = Histogram(
            "allocator_reconcile_pass_seconds",
            "How long whole passes took",
            ["pool"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=registry,
        ).labels(pool)
        self._show()
        for of in ("redis", "database"):
            self._outages.labels(pool, of)

    def leads(self, *, leads: bool) -> None:
        """Take in whether this one leads."""
        self._leader.set(int(leads))
        if not leads:  # what it met then is the next leader's to tell
            self._show()

    def passed(self, report: Report, seconds: float) -> None:
        """Take in a whole pass."""
        self._passes.observe(seconds)
        self._show(report)
        self._last.set_to_current_time()
        self._written.inc(report.written)

    def _show(self, report: Report | None = None) -> None:
        """Show what a pass met; without one, nothing."""
        self._leases.set(report.leases if report else 0)
        self._refused.set(len(report.refused) if report else 0)
        for kind in Kind:
            self._drift.labels(self._pool, str(kind)).set(report.counts[kind] if report else 0)

    def followed(self, report: Report, lag_s: float) -> None:
        """Take in the settling of events, the last of which was so old then."""
        self._written.inc(report.written)
        self._lag.set(lag_s)

    def failed(self, error: AllocatorError) -> None:
        """Take in that Redis or the database was away."""
        self._outages.labels(self._pool, "database" if isinstance(error, DatabaseUnavailableError) else "redis").inc()


@contextmanager
def serve_metrics(address: str, pool: str) -> Iterator[PrometheusGauge]:
    """Serve metrics at `HOST:PORT` while the block runs; gives what takes them in.

    Raises:
        InvalidInputError: When the address has another form.
        ConfigurationError: When prometheus-client is not installed, or the address cannot be had.
    """
    with serve_registry(address) as registry:
        yield PrometheusGauge(registry, pool)
