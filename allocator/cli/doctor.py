"""`doctor`: what is wrong or risky on this host, each finding with what mends it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from allocator.cli.options import ConfigOption, Desk, HostOption, ListFormat, PoolOption, RedisOption, RowsFormat, desk
from allocator.cli.output import write_json
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOCK_TOLERANCE_S = 5.0
SLOW_MS = 10.0
FOUND = 1


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(doctor)


def doctor(
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Check Redis, this host and its leases; exit 1 with findings.

    Leases are held against the sockets that listen here, and against the lease files of this user.

    Example: allocator doctor
    """
    with desk(pool, host, redis_url, config) as at:
        server = at.allocator.store.server()
        findings = [*_server_findings(at), *_kernel_findings(at), *_lease_findings(at)]
        if form is ListFormat.JSON:
            facts = {"kind": server.kind, "version": server.version, "role": server.role, "eviction": server.eviction}
            write_json({"server": facts, "findings": findings})
        else:
            print(f"server   {server.kind} {server.version}, {server.role or 'role unknown'}")
            print(f"host     {at.host}, pool {at.pool}")
            for finding in findings:
                print(f"finding  {finding}")
            if not findings:
                print("all well")
    if findings:
        raise typer.Exit(FOUND)


def _server_findings(at: Desk) -> Iterator[str]:
    store = at.allocator.store
    yield from store.server().warnings()
    before = time.monotonic()
    server_now = store.server_time()
    took_ms = (time.monotonic() - before) * 1_000
    if took_ms > SLOW_MS:
        yield f"Redis took {took_ms:.0f} ms to answer; look for a slow network or long scripts (SLOWLOG GET)"
    if abs(server_now - time.time()) > CLOCK_TOLERANCE_S:
        yield (
            f"this host's clock is {time.time() - server_now:+.0f} s off the server's; leases do not mind, "
            "but the times you read do: set the clock by NTP"
        )


def _kernel_findings(at: Desk) -> Iterator[str]:
    from allocator.kernel.sockets import port_range_overlap

    pool = at.allocator.pool()
    overlap = port_range_overlap(pool.first, pool.last)
    if overlap:
        yield (
            f"outgoing connections may take ports {overlap[0]}-{overlap[1]} of the pool; "
            f"sysctl -w net.ipv4.ip_local_reserved_ports={pool.first}-{pool.last}"
        )


def _lease_findings(at: Desk) -> Iterator[str]:
    from allocator.kernel.sockets import listeners

    pool = at.allocator.pool()
    leases = {lease.port: lease for lease in at.allocator.leases(host=at.host)}
    listening = {one.port: one for one in listeners(pool.first, pool.last)}
    for port, one in sorted(listening.items()):
        if port not in leases:
            who = f"{one.command or 'a process'} (pid {one.pid or 'unknown'})"
            yield f"{who} listens on port {port} without a lease; claim one for it, or end it"
    for port, lease in sorted(leases.items()):
        if port not in listening and lease.state is not LeaseState.STARTING:
            yield f"port {port} is leased by {lease.worker} ({lease.state}), but nobody listens; allocator show {port}"
    for saved in at.files.all(at.pool, at.host):
        if saved.port not in leases:
            yield f"a lease file is left of {saved.worker} on port {saved.port}; allocator release {saved.port}"
