"""What became of the leases that a process holds: counted by its heartbeats, shown to Prometheus by a collector.

A server sees renewals that pass through it; only a holder knows that Redis was silent past a deadline, or that it lost
a lease. Every process that holds leases counts for itself; the sum over them is the fleet's.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import check_port, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

OUTCOMES = ("renewed", "reasserted", "lost", "unanswered")
"""What a lease's renewal comes to; `unanswered` is one that Redis did not answer, and that is tried again."""


@dataclass(slots=True)
class HolderCounts:
    """What a process holds, and what its renewals came to.

    Attributes:
        renewals: How many renewals had each of `OUTCOMES`, a lease at a time.
        doubts: How often a lease became doubtful: its deadline passed without an answer of Redis.
        held: Leases that are held now.
        doubtful: Those of them that are doubtful now.
    """

    renewals: Counter[str] = field(default_factory=Counter)
    doubts: int = 0
    held: int = 0
    doubtful: int = 0


class Holder(Protocol):
    """Whoever holds leases and counts: an allocator or an agent."""

    @property
    def counts(self) -> HolderCounts:
        """What it counted until now."""
        ...


class HolderMetrics:
    """A collector of the counts of one holder: `registry.register(HolderMetrics(ports, pool))`.

    Args:
        holder: A `PortAllocator`, an `AsyncPortAllocator`, or an agent.
        pool: The pool, a label of each metric.
    """

    def __init__(self, holder: Holder, pool: str) -> None:
        self._holder = holder
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics; Prometheus' client calls this at each scrape."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        counts = self._holder.counts
        renewals = CounterMetricFamily(
            "allocator_holder_renewals", "Renewals of leases that this process holds.", labels=["pool", "outcome"]
        )
        for outcome in OUTCOMES:
            renewals.add_metric([self._pool, outcome], counts.renewals[outcome])
        yield renewals
        doubts = CounterMetricFamily(
            "allocator_holder_doubts", "Leases whose deadline passed without an answer of Redis.", labels=["pool"]
        )
        doubts.add_metric([self._pool], counts.doubts)
        yield doubts
        for name, text, value in (
            ("held", "Leases that this process holds.", counts.held),
            ("doubtful", "Those of them whose deadline has passed and which are kept all the same.", counts.doubtful),
        ):
            gauge = GaugeMetricFamily(f"allocator_holder_{name}_leases", text, labels=["pool"])
            gauge.add_metric([self._pool], value)
            yield gauge


@contextmanager
def serve_registry(address: str) -> Iterator[CollectorRegistry]:
    """Serve metrics at `HOST:PORT` while the block runs; gives the registry of what is served.

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
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
