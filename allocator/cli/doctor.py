"""`doctor`: what is wrong or risky on this host, each finding with what mends it. It changes nothing."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from allocator.cli.options import ConfigOption, Desk, HostOption, ListFormat, PoolOption, RedisOption, RowsFormat, desk
from allocator.cli.output import write_json
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOCK_TOLERANCE_S = 5.0
SLOW_MS = 10.0
PINGS = 5
SPARE_FILES = 256
"""Descriptors that a supervisor needs beside those of its workers."""
FOUND = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong or risky.

    Attributes:
        check: What was looked at, one word.
        what: What is wrong, with what.
        mend: What mends it: a command wherever there is one.
    """

    check: str
    what: str
    mend: str


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
        findings = [
            *_server_findings(at),
            *_rights(at),
            *_kernel_findings(at),
            *_host_findings(at),
            *_lease_findings(at),
        ]
        if form is ListFormat.JSON:
            facts = {"kind": server.kind, "version": server.version, "role": server.role, "eviction": server.eviction}
            write_json({"server": facts, "findings": [asdict(finding) for finding in findings]})
        else:
            print(f"server   {server.kind} {server.version}, {server.role or 'role unknown'}")
            print(f"host     {at.host}, pool {at.pool}")
            for finding in findings:
                print(f"finding  {finding.what}; {finding.mend}")
            if not findings:
                print("all well")
    if findings:
        raise typer.Exit(FOUND)


def _server_findings(at: Desk) -> Iterator[Finding]:
    store = at.allocator.store
    for warning in store.server().warnings():
        what, _, mend = warning.rpartition("; ")
        yield Finding("persistence", what, mend)
    times_ms = []
    for _ in range(PINGS):
        before = time.monotonic()
        server_now = store.server_time()
        times_ms.append((time.monotonic() - before) * 1_000)
    took_ms = statistics.median(times_ms)
    if took_ms > SLOW_MS:
        what = f"Redis took {took_ms:.0f} ms to answer, half of the time longer"
        yield Finding("latency", what, "look for a slow network or long scripts: redis-cli slowlog get")
    off_s = time.time() - server_now
    if abs(off_s) > CLOCK_TOLERANCE_S:
        what = f"this host's clock is {off_s:+.0f} s off the server's: leases do not mind, but the times you read do"
        yield Finding("clock", what, "set the clock by NTP: timedatectl set-ntp true")


def _rights(at: Desk) -> Iterator[Finding]:
    from allocator.protocol.keys import pool_key

    base, nobody = pool_key(at.pool), "doctor"
    harmless = (  # what a holder must be allowed to do, on what does not exist
        ("HGET", f"{base}:tokens:{nobody}", "0"),
        ("HDEL", f"{base}:host:{nobody}", "-"),
        ("ZREM", f"{base}:ports:{nobody}", "0"),
        ("DEL", f"{base}:lease:{nobody}:0"),
        ("PEXPIRE", f"{base}:worker:{nobody}", "1"),
        ("XTRIM", f"{base}:events:{nobody}", "MAXLEN", "0"),
    )
    denied = at.allocator.store.denied(harmless)
    if denied:
        what = f"this Redis user can look but not hold leases: it may not {', '.join(denied)} keys of {base}"
        yield Finding("rights", what, "give it the rules of 'holder' in deploy/redis/users.acl")


def _kernel_findings(at: Desk) -> Iterator[Finding]:
    import resource

    from allocator.kernel.sockets import port_range_overlap

    pool = at.allocator.pool()
    overlap = port_range_overlap(pool.first, pool.last)
    if overlap:
        what = f"outgoing connections may take ports {overlap[0]}-{overlap[1]} of the pool"
        yield Finding("ports", what, f"sysctl -w net.ipv4.ip_local_reserved_ports={pool.first}-{pool.last}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(pool.size, 1_024) + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        mend = f"ulimit -n {wanted}" if hard == resource.RLIM_INFINITY or hard >= wanted else f"LimitNOFILE={wanted}"
        yield Finding("files", f"a process here may open {soft} files, few for a pool of {pool.size} ports", mend)


def _host_findings(at: Desk) -> Iterator[Finding]:
    from allocator.protocol import listing

    rules = at.allocator.pool()
    space = at.allocator.session.context.space(rules)
    mine = next((one for one in at.allocator.hosts() if one.name == at.host), None)
    if mine and (mine.cordoned or mine.draining):
        what = f"host {at.host} is {'draining' if mine.draining else 'cordoned'} and gives out no new ports"
        yield Finding("host", what, f"allocator host uncordon {at.host}")
    declined = at.allocator.run(listing.declined_ports(at.pool, space))
    for view in at.allocator.run(listing.ports(at.pool, space)):
        if view.why == "cooling" and view.port in declined:
            what = f"port {view.port} is in quarantine: something without a lease had it bound when it was claimed"
            yield Finding("quarantine", what, f"allocator who {view.port}")


def _lease_findings(at: Desk) -> Iterator[Finding]:
    from allocator.kernel.sockets import listeners

    pool = at.allocator.pool()
    leases = {lease.port: lease for lease in at.allocator.leases(host=at.host)}
    listening = {one.port: one for one in listeners(pool.first, pool.last)}
    for port, one in sorted(listening.items()):
        if port not in leases:
            who = f"{one.command or 'a process'} (pid {one.pid or 'unknown'})"
            mend = f"adopt it ('allocator adopt --help'), or end it: kill {one.pid or 'PID'}"
            yield Finding("stranger", f"{who} listens on port {port} without a lease", mend)
    for port, lease in sorted(leases.items()):
        if port not in listening and lease.state is not LeaseState.STARTING:
            what = f"port {port} is leased by {lease.worker} ({lease.state}), but nobody listens"
            yield Finding("silent", what, f"allocator show {port}")
    for saved in at.files.all(at.pool, at.host):
        if saved.port not in leases:
            what = f"a lease file is left of {saved.worker} on port {saved.port}"
            yield Finding("leftover", what, f"allocator release {saved.port}")
