"""Where a worker can be reached: what `resolve` answers, as a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.values import Value

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId


class Endpoint(Value, order=True):
    """The address of a ready worker.

    Attributes:
        address: The IP address or name that the worker's host advertises.
        port: 1-65535.
        host: The host's name in the pool.
        worker: Who listens there.
        fence: The fence of its lease: another one under the same address is another worker.
    """

    address: str
    port: int
    host: str
    worker: WorkerId
    fence: int

    @classmethod
    def of(cls, lease: Lease, address: str) -> Endpoint:
        """Return where the worker of a lease is; by its host's name when the host advertises no address."""
        return cls(address or lease.host, lease.port, lease.host, lease.worker, lease.fence)

    def __str__(self) -> str:
        """`address:port`, an IPv6 address in brackets."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def as_json(self) -> dict[str, object]:
        """Return the object that `--format json` prints."""
        return {
            "address": self.address,
            "port": self.port,
            "host": self.host,
            "org": self.worker.org,
            "plugin": self.worker.plugin,
            "instance": self.worker.instance,
            "fence": self.fence,
        }


class Sighting(Value):
    """A worker's address as one reading of Redis shows it, with the lease that it rests on.

    Attributes:
        lease: The lease, in whatever state.
        endpoint: Where its worker is.
        left_ms: How long the lease would have lived on without a renewal when it was read.
    """

    lease: Lease
    endpoint: Endpoint
    left_ms: float

    @classmethod
    def of(cls, lease: Lease, address: str, now_ms: float) -> Sighting:
        """Return what a lease and its host's address show.

        Args:
            lease: The lease.
            address: The address that its host advertises; empty when it advertises none.
            now_ms: The server's time of the reading.
        """
        return cls(lease, Endpoint.of(lease, address), lease.expires_at * 1_000 - now_ms)
