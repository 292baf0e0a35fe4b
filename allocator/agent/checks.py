"""The health of one lease that is bound to a process: by its label `health` a path such as `/health`, `tcp` or `none`.

Without the label it is `tcp`: ready when its port is listened on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.client.health import Health, HealthCheck
from allocator.kernel.port_watch import PortWatch
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from allocator.agent.family import ProcessFamily
    from allocator.model.leases import Lease

LABEL = "health"
CONNECT = "tcp"
SLOWEST_LOOK_S = 0.25
"""The shortest time between two checks of a starting worker: an agent may have a thousand of them."""

INTERVAL_S = 5.0


def asks_for_checks(labels: Mapping[str, str]) -> bool:
    """Return whether a lease is to be checked."""
    asked = labels.get(LABEL, CONNECT)
    return asked == CONNECT or (asked.startswith("/") and asked.isascii() and asked.isprintable() and " " not in asked)


def check_of(lease: Lease, family: ProcessFamily, now: float) -> HealthCheck:
    """Return the health check that the label of a lease names.

    Args:
        lease: The lease.
        family: The processes that the listening socket may belong to.
        now: The caller's clock, in seconds.
    """
    asked = lease.labels.get(LABEL, CONNECT)
    health = Health(now, INTERVAL_S, None, slowest_look_s=SLOWEST_LOOK_S)
    if lease.state in {LeaseState.READY, LeaseState.DEGRADED}:
        health.state = lease.state
        health.ready_at = now
    watch = PortWatch(lease.port, family.members)
    return HealthCheck(health, lease.port, [watch], None if asked == CONNECT else asked)
