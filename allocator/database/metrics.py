"""The metrics of `reconcile --watch`, in Prometheus's format, at an address of their own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from allocator.database.drift import Kind
from allocator.model.errors import AllocatorError, ConfigurationError, DatabaseUnavailableError, InvalidInputError
from allocator.model.names import check_port, shown

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
        self._written = counter("rows_written", "Rows written or stopped").labels(pool)
        self._outages = counter("outages", "Attempts that met no Redis or no database", "of")
        self._passes = Histogram(
            "allocator_reconcile_pass_seconds",
            "How long whole passes took",
            ["pool"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=registry,
        ).labels(pool)
        for kind in Kind:
            self._drift.labels(pool, str(kind)).set(0)
        for of in ("redis", "database"):
            self._outages.labels(pool, of)

    def leads(self, *, leads: bool) -> None:
        """Take in whether this one leads."""
        self._leader.set(int(leads))

    def passed(self, report: Report, seconds: float) -> None:
        """Take in a whole pass."""
        self._passes.observe(seconds)
        self._leases.set(report.leases)
        self._refused.set(len(report.refused))
        self._last.set_to_current_time()
        for kind in Kind:
            self._drift.labels(self._pool, str(kind)).set(report.counts[kind])
        self._written.inc(report.written)

    def followed(self, report: Report) -> None:
        """Take in the settling of events."""
        self._written.inc(report.written)

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
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        raise InvalidInputError(f"{shown(address)} is not an address; write it like 127.0.0.1:9477")
    number = check_port(port)
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ModuleNotFoundError:
        raise ConfigurationError(
            "prometheus-client is not installed; pip install 'portlease[server]', or omit --metrics-listen"
        ) from None
    registry = CollectorRegistry()
    try:
        server, thread = start_http_server(number, host.strip("[]"), registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics cannot be served at {host}:{number} ({error.strerror or error}); give another --metrics-listen"
        ) from None
    try:
        yield PrometheusGauge(registry, pool)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
