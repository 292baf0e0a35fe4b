"""This host in the pool: whether it gives out ports, what listens without a lease, what is leased and silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.agent.family import is_stranger
from allocator.cli.checks.findings import Finding, finding_of_problem
from allocator.kernel.holders import is_supervised
from allocator.kernel.sockets import listeners
from allocator.model import problems
from allocator.model.states import LeaseState
from allocator.operations import listing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.cli.context import CliContext
    from allocator.model.leases import Lease
    from allocator.model.pools import PoolSpec


def check_host(context: CliContext, pool: PoolSpec) -> Iterator[Finding]:
    """Look at the host's own condition and at its ports in quarantine."""
    namespace = pool.namespace_of(context.allocator.session.context.host)
    mine = next((one for one in context.allocator.hosts() if one.name == context.host), None)
    if mine:
        condition = problems.of_host(context.host, cordoned=mine.cordoned, draining=mine.draining)
        yield from [finding_of_problem(condition)] if condition else []
    for view in context.allocator.run(listing.ports(context.pool, namespace, quarantine=True)):
        if view.why == "quarantined":
            yield finding_of_problem(problems.of_quarantine(view.port))


def check_name(cli: CliContext, leases: dict[int, Lease], now: float) -> Iterator[Finding]:
    """Look whether a claim would be refused, for another machine or container goes by this host's name.

    Args:
        cli: What the command works with.
        leases: The live leases of the pool under this host's name, by port.
        now: The time, in Unix seconds by the server's clock.
    """
    context = cli.allocator.session.context
    known = cli.allocator.run(listing.host_identity(cli.pool, cli.host)).split()[:3]
    own = context.identity.split()[:3]
    if known == own or "-" in {known[0], own[0]} or not leases:
        return
    began = now - context.alive_ms / 1_000
    renews = any(lease.expires_at - lease.ttl_ms / 1_000 > began for lease in leases.values())
    if known[0] != own[0] or renews:
        other = "another machine" if known[0] != own[0] else "another container or a clone of this machine"
        what = f"{other} has {len(leases)} live leases under the name {cli.host}: a claim here is refused"
        yield Finding("host", what, "give this one a name of its own with --host or ALLOCATOR_HOST")


def check_leases(pool: PoolSpec, leases: dict[int, Lease], now: float) -> Iterator[Finding]:
    """Hold the leases of this host against the sockets that listen here, and against what they state of their workers.

    Args:
        pool: The pool.
        leases: Its live leases on this host, by port.
        now: The time, in Unix seconds by the server's clock.
    """
    seen = listeners(pool.first, pool.last)
    listening = {one.port: one for one in seen}
    for one in seen:
        lease = leases.get(one.port)
        if lease is not None and is_stranger(lease, one):
            who = f"{one.command or 'a process'} (pid {one.pid}) listens on {one.address}:{one.port}"
            what = f"{who}, leased by {lease.worker}, as well: callers of the worker may reach it"
            yield Finding("shared", what, f"end it: kill {one.pid}")
    for port, one in sorted(listening.items()):
        if port not in leases:
            who = f"{one.command or 'a process'} (pid {one.pid or 'unknown'})"
            yield finding_of_problem(problems.of_stranger(port, who, one.pid))
    for port, lease in sorted(leases.items()):
        found = problems.of_lease(lease, now, None)
        is_silent = port not in listening and lease.state is not LeaseState.STARTING
        if found is None and is_silent and not is_supervised(lease):  # who is ready without a listener, it knows
            found = problems.of_silence(lease)
        if found is not None:
            yield finding_of_problem(found)
