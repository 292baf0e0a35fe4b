"""What became of the leases that a process holds: counted by its heartbeats, shown to Prometheus by a collector.

A server sees renewals that pass through it; only a holder knows that Redis was silent past a deadline, or that it lost
a lease. Every process that holds leases counts for itself; the sum over them is the fleet's.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import check_port, shown
from allocator.model.values import Value, field, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

OUTCOMES = ("renewed", "reasserted", "lost", "unanswered")
"""What a lease's renewal comes to; `unanswered` is one that Redis did not answer, and that is tried again."""


class HolderCounts(Value, frozen=False):
    """What a process holds of one pool, and what its renewals came to.

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


def with_held(counts: Mapping[str, HolderCounts], held: Iterable[tuple[str, bool]]) -> dict[str, HolderCounts]:
    """Return what was counted, by pool, with what is held now.

    Args:
        counts: What was counted until now, by pool.
        held: The pool of each lease that is held, and whether it is doubtful.
    """
    found = {pool: replace(one, held=0, doubtful=0) for pool, one in dict(counts).items()}
    for pool, doubtful in held:
        one = found.setdefault(pool, HolderCounts())
        one.held += 1
        one.doubtful += doubtful
    return found


class Holder(Protocol):
    """Whoever holds leases and counts: an allocator or an agent."""

    @property
    def counts(self) -> Mapping[str, HolderCounts]:
        """What it counted until now, by pool."""
        ...


class HolderMetrics:
    """A collector of the counts of one holder: `registry.register(HolderMetrics(ports))`.

    Args:
        holder: A `PortAllocator`, an `AsyncPortAllocator`, or an agent.
    """

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    def collect(self) -> Iterable[Metric]:
        """Return the metrics; Prometheus' client calls this at each scrape."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        by_pool = self._holder.counts
        renewals = CounterMetricFamily(
            "allocator_holder_renewals", "Renewals of leases that this process holds.", labels=["pool", "outcome"]
        )
        doubts = CounterMetricFamily(
            "allocator_holder_doubts", "Leases whose deadline passed without an answer of Redis.", labels=["pool"]
        )
        held = GaugeMetricFamily("allocator_holder_held_leases", "Leases that this process holds.", labels=["pool"])
        doubtful = GaugeMetricFamily(
            "allocator_holder_doubtful_leases",
            "Those of them whose deadline has passed and which are kept all the same.",
            labels=["pool"],
        )
        for pool, counts in by_pool.items():
            for outcome in OUTCOMES:
                renewals.add_metric([pool, outcome], counts.renewals[outcome])
            doubts.add_metric([pool], counts.doubts)
            held.add_metric([pool], counts.held)
            doubtful.add_metric([pool], counts.doubtful)
        return renewals, doubts, held, doubtful


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
