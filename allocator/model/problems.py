"""What is wrong with a pool, a host or a lease, as rules: `doctor` and the API's `/v1/problems` share them.

The rule of this file: a function is given what was read and returns a `Problem` or None; it reads nothing itself. Each
sentence states what is wrong with what, each command is what to do about it, to be copied into a shell: names in it are
quoted, for they come from Redis.
"""

from __future__ import annotations

import shlex
from enum import IntEnum
from typing import TYPE_CHECKING

from allocator.model.leases import written_time
from allocator.model.states import LeaseState
from allocator.model.values import Value

if TYPE_CHECKING:
    from allocator.model.leases import Lease

START_S = 60.0
"""How long a worker may take to become ready: what `run` gives it before it starts it again."""
CRASHES = 3
"""Restarts under one lease from which on a worker that is not ready is in a crash loop."""
LATE = 0.05
"""The share of its TTL that is left of a lease whose holder should have renewed it long before (T2 is at 0.125)."""


class Severity(IntEnum):
    """How bad it is: whether users notice, soon will, or nobody does."""

    NOTICE = 1
    WARNING = 2
    CRITICAL = 3


class Problem(Value, kw_only=True):
    """Something that is wrong, and what to do about it.

    Attributes:
        check: What was looked at.
        severity: How bad it is.
        what: What is wrong, with what.
        command: What to do about it: a command wherever there is one.
        host: The host that it concerns, if one.
        port: The port, if one.
        worker: The worker, if one.
        since: Since when, in Unix seconds; None when nobody knows.
    """

    check: str
    severity: Severity
    what: str
    command: str
    host: str | None = None
    port: int | None = None
    worker: str | None = None
    since: float | None = None


def command(*arguments: str | int, host: str | None = None, pool: str | None = None) -> str:
    """Return a command line of ours, its arguments quoted.

    Args:
        *arguments: What stands behind `allocator`.
        host: The host that is meant where it is not the one at which the command is typed.
        pool: The pool that is meant where it is not the default one.
    """
    line = ["allocator", *map(str, arguments)]
    line += ["--host", host] if host is not None else []
    line += ["--pool", pool] if pool is not None else []
    return shlex.join(line)


def of_host(
    host: str, *, cordoned: bool, draining: bool, since: float | None = None, pool: str | None = None
) -> Problem | None:
    """Return that a host gives out no new ports, if so: somebody wanted it, and may have forgotten it."""
    if not cordoned and not draining:
        return None
    return Problem(
        check="host",
        severity=Severity.NOTICE,
        what=f"host {host} is {'draining' if draining else 'cordoned'} and gives out no new ports",
        command=command("host", "uncordon", host, pool=pool),
        host=host,
        since=since,
    )


def of_quarantine(port: int, host: str | None = None, since: float | None = None) -> Problem:
    """Return that a port is in quarantine."""
    where = "" if host is None else f" on {host}"
    return Problem(
        check="quarantine",
        severity=Severity.WARNING,
        what=f"port {port}{where} is in quarantine: something without a lease had it bound when it was claimed",
        command=command("who", port) if host is None else f"ssh {shlex.quote(host)} {command('who', port)}",
        host=host,
        port=port,
        since=since,
    )


def of_stranger(port: int, who: str, pid: int | None, host: str | None = None, since: float | None = None) -> Problem:
    """Return that a process listens on a port of the pool without a lease."""
    where = "" if host is None else f" on {host}"
    return Problem(
        check="stranger",
        severity=Severity.WARNING,
        what=f"{who} listens on port {port}{where} without a lease",
        command=f"adopt it ('allocator adopt --help'), or end it: kill {pid or 'PID'}",
        host=host,
        port=port,
        since=since,
    )


def of_silence(lease: Lease) -> Problem:
    """Return that a lease's port is one on which nobody listens."""
    return Problem(
        check="silent",
        severity=Severity.CRITICAL if lease.state is LeaseState.READY else Severity.WARNING,
        what=f"port {lease.port} is leased by {lease.worker} ({lease.state}), but nobody listens",
        command=command("show", lease.port),
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
    )


def of_lease(lease: Lease, now: float, since: float | None, pool: str | None = None) -> Problem | None:
    """Return what is wrong with a worker by its lease, if anything.

    Args:
        lease: The lease.
        now: The time, in Unix seconds by the server's clock.
        since: Since when the lease is in its state, where that is known.
        pool: The pool, where it is not the default one.
    """
    began = _began(lease, since)
    error = f": {lease.last_error}" if lease.last_error else ""
    is_up = lease.state in {LeaseState.READY, LeaseState.DRAINING}
    if lease.restarts >= CRASHES and not is_up:
        check, severity = "crash-loop", Severity.CRITICAL
        what = f"{lease.worker} on {lease.address} was started again {lease.restarts} times and is {lease.state}{error}"
    elif lease.state is LeaseState.DEGRADED:
        check, severity = "degraded", Severity.CRITICAL
        what = f"{lease.worker} on {lease.address} fails its health check{error}"
    elif lease.state is LeaseState.STARTING and now - began > START_S:
        check, severity = "not-ready", Severity.WARNING
        what = f"{lease.worker} on {lease.address} has not become ready since {written_time(began)}{error}"
    else:
        return None
    return Problem(
        check=check,
        severity=severity,
        what=what,
        command=command("show", lease.port, host=lease.host, pool=pool),
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        since=began,
    )


def _began(lease: Lease, since: float | None) -> float:
    return since or lease.starts_since or lease.granted_at


def start_due_at(lease: Lease, since: float | None) -> float:
    """Return from when on a worker that is still starting is a problem, in Unix seconds."""
    return _began(lease, since) + START_S


def of_lateness(host: str, leases: list[Lease], now: float, pool: str | None = None) -> Problem | None:
    """Return that nobody on a host renews its leases, if so.

    Args:
        host: The host.
        leases: Its live leases, as they were read just now.
        now: When they were read, in Unix seconds by the server's clock.
        pool: The pool, where it is not the default one.
    """
    late = [one for one in leases if one.expires_at - now < LATE * one.ttl_ms / 1_000]
    if not late:
        return None
    every = len(late) == len(leases)
    first = min(late, key=lambda one: one.expires_at)
    return Problem(
        check="late",
        severity=Severity.CRITICAL if every else Severity.WARNING,
        what=f"{'no lease' if every else f'{len(late)} of {len(leases)} leases are not'} of host {host} "
        f"{'is renewed' if every else 'renewed'}: the host, its network or its supervisors are in trouble",
        command=command("ls", host=host, pool=pool),
        host=host,
        worker=str(first.worker) if len(late) == 1 else None,
        since=first.expires_at - first.ttl_ms / 1_000,
    )


def of_lost_workers(host: str, workers: list[str], since: float, pool: str | None = None) -> Problem:
    """Return that workers of a host ended silently and run nowhere since."""
    one = len(workers) == 1
    return Problem(
        check="lost",
        severity=Severity.CRITICAL,
        what=f"{workers[0] if one else f'{len(workers)} workers'} of host {host} stopped renewing and "
        f"{'runs' if one else 'run'} nowhere since",
        command=command("events", pool=pool),
        host=host,
        worker=workers[0] if one else None,
        since=since,
    )


def of_full_hosts(full: int, hosts: int, pool: str | None = None) -> Problem:
    """Return that many hosts have no port left: one problem, or nothing else would be seen among them."""
    return Problem(
        check="full",
        severity=Severity.WARNING,
        what=f"{full} of {hosts} hosts have no free port",
        command=command("host", "ls", pool=pool),
    )


def of_room(where: str, free: int, size: int, host: str | None = None, pool: str | None = None) -> Problem | None:
    """Return that a host, or a pool, has no port left, or few of many."""
    if free > 0 and (host is not None or free > size // 50):
        return None
    what = f"{where} has no free port" if free <= 0 else f"{where} has {free} free ports of {size}"
    return Problem(
        check="full",
        severity=Severity.WARNING if free > 0 or host is not None else Severity.CRITICAL,
        what=what,
        command=command("ls", host=host, pool=pool) if host is not None else command("pool", "show", pool=pool),
        host=host,
    )
