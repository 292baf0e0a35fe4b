"""One lease that is bound to a process: its user, its process, and when to renew it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.kernel.identity import ProcessIdentity, boot_id, identify, namespaces
from allocator.model.errors import ConfigurationError
from allocator.model.values import Value

if TYPE_CHECKING:
    from allocator.agent.family import ProcessFamily
    from allocator.client.health import HealthCheck
    from allocator.client.lease_files import LeaseFiles
    from allocator.model.leases import Lease

RENEW_AFTER = 0.45
"""The part of the TTL after which a lease is renewed: before T1 of other holders, so one missed call does no harm."""


class BoundLease(Value, frozen=False):
    """A lease that the agent renews.

    Attributes:
        lease: The lease, with its token.
        files: Where its file lies.
        name: The file's name.
        renew_at: When it is to be renewed, by the agent's clock.
        ended: Whether its process has ended, so that it is to be released.
        changed: Whether it shows something that Redis does not have yet.
        doubtful: Whether its deadline passed without an answer of Redis.
        check: Its health checks, or None.
        draining: Whether its host is being drained, as Redis answered last.
        family: The process group and session of its process.
    """

    lease: Lease
    files: LeaseFiles
    name: str
    renew_at: float = 0.0
    ended: bool = False
    changed: bool = False
    doubtful: bool = False
    check: HealthCheck | None = None
    draining: bool = False
    family: ProcessFamily | None = None

    @property
    def key(self) -> tuple[LeaseFiles, str]:
        """The key of the lease in the agent's table."""
        return self.files, self.name

    def confirm(self, lease: Lease, now: float) -> None:
        """Apply a renewal."""
        self.lease = lease
        self.changed = self.doubtful = False
        self.renew_at = now + lease.ttl_ms / 1_000 * RENEW_AFTER


def process_of(lease: Lease) -> ProcessIdentity | None:
    """Return the process that a lease is bound to, or None when it has surely ended.

    Raises:
        ConfigurationError: When this process cannot tell: the other runs in a pid namespace of its own, or is hidden.
    """
    here = boot_id()
    if lease.boot is not None and here and lease.boot != here:
        return None  # the machine was started again since
    ours = namespaces().partition("-")[0]
    if lease.namespaces is not None and lease.namespaces.partition("-")[0] != ours:
        raise ConfigurationError(
            f"the lease of {lease.worker} on {lease.address} is bound to process {lease.pid} of another pid namespace; "
            "run an agent there"
        )
    if lease.pid_started is not None:
        return ProcessIdentity(lease.pid or 0, lease.pid_started, here)
    return identify(lease.pid or 0)
