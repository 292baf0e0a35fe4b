"""The end of a round: the faults are over, the actors stand still, and all sides are compared; then all leave.

Each comparison is given as long as the promise allows: what dead holders left has to be gone after TTL + grace.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import redis

from allocator import AllocatorError
from allocator.kernel.socket_tables import listening_ports
from allocator.operations import listing
from torture.history import UNKNOWN, read_history

if TYPE_CHECKING:
    from allocator import Lease
    from torture.environment import Environment
    from torture.sql import Table

SETTLING_S = 30.0
LEAVING_S = 40.0
"""Far longer than it takes: on a busy machine the server answers nothing for seconds."""
KEPT = frozenset({"events", "history", "host", "hosts", "ports", "tokens", "turn", "worker"})
"""What a pool keeps of the past (see allocator/protocol/lua/README.md); the rest is of live leases and waiters."""


def stand_still(arena: Environment) -> None:
    """Wait until Redis, the kernel and the holders agree, and enter what does not."""
    (arena.directory / "stand").touch()
    deadline = time.monotonic() + SETTLING_S
    problems = ["nothing was compared"]
    evidence: list[Any] = []
    while problems and time.monotonic() < deadline:
        time.sleep(0.25)
        try:
            problems, evidence = _disagreements(arena)
        except (AllocatorError, redis.RedisError, psycopg.Error, OSError) as error:
            problems = [f"the server does not answer: {error}"]
    arena.book.write("settled", when="standing still", problems=problems, evidence=evidence)


def _disagreements(arena: Environment) -> tuple[list[str], list[Any]]:
    believed: dict[int, tuple[int, bool, str]] = {}
    problems = []
    names = arena.clients.names()
    looked_after = {name for name in names if name.startswith(("supervisor", "bound"))}
    for name in names:
        if not name.startswith(("holder", "keeper", "waiter")):
            continue
        found = _last_belief(arena, name)
        if found is None:
            problems.append(f"{name} does not stand still")
            continue
        for port, fence, bound in found:
            if port in believed:
                problems.append(f"{name} and {believed[port][2]} both hold port {port}")
            believed[port] = fence, bound, name
    with arena.allocator() as ports:
        leases = ports.leases()
    kept = {lease.org: lease for lease in leases if lease.plugin in {"sup", "bound"}}
    if set(kept) != looked_after and not (set(kept) < looked_after and _is_full(arena)):
        problems.append(f"supervisors and bound processes are {looked_after}, their leases {kept}")
    known = {lease.port: lease.fence for lease in leases if lease.org not in kept}
    held = {port: fence for port, (fence, _, _) in believed.items()}
    if known != held:
        problems.append(f"Redis has {known}, the holders have {held}")
    listened = listening_ports(arena.pool.first, arena.pool.last)
    bound_ports = {port for port, (_, bound, _) in believed.items() if bound}
    bound_ports |= {lease.port for lease in kept.values()}
    if listened != bound_ports:
        problems.append(f"the kernel has {sorted(listened)}, the holders have bound {sorted(bound_ports)}")
    if arena.table is not None:
        problems += _rows_that_differ(arena, arena.table, leases)
    return problems, [believed]


def _is_full(arena: Environment) -> bool:
    """Return whether no port can be had, so that who has none goes on trying."""
    with arena.admin() as client:
        seconds, us = client.time()
        taken = client.zcount(f"alloc:{{{arena.pool.name}}}:ports:web-1", seconds * 1_000 + us / 1_000, "+inf")
    return int(taken) >= arena.pool.size


def _rows_that_differ(arena: Environment, table: Table, leases: list[Lease]) -> list[str]:
    """Return what is wrong with the rows; one that nobody can explain stays, where Redis has lost its data."""
    rows = table.live()
    wanted = {str(lease.worker): (lease.host, lease.port, lease.fence) for lease in leases}
    problems = [
        f"the row of {worker} is {rows.get(worker)}, its lease {address}"
        for worker, address in wanted.items()
        if rows.get(worker) != address
    ]
    if not arena.has_lost_data and (more := rows.keys() - wanted.keys()):
        problems.append(f"rows without a lease are live: {more}")
    return problems


def _last_belief(arena: Environment, name: str) -> list[tuple[int, int, bool]] | None:
    with (arena.directory / f"actor-{name}.jsonl").open("rb") as book:
        book.seek(max(0, book.seek(0, 2) - 20_000))
        lines = book.read().splitlines()
    for text in reversed(lines):
        if text.startswith(b'{"kind": "believes"'):
            line = json.loads(text)
            return line["leases"] if time.monotonic() - line["at"] < 1.5 else None
    return None


def leave(arena: Environment) -> None:
    """Let all leave, wait until every port is claimable, reap, and enter what is left."""
    (arena.directory / "leave").touch()
    arena.clients.close()
    arena.clients.dismiss_commands()
    deadline = time.monotonic() + LEAVING_S
    while arena.clients.names() and time.monotonic() < deadline:
        arena.clients.tend(may_end=True)
        time.sleep(0.05)
    problems = [f"{name} did not leave" for name in arena.clients.names()]
    try:
        arena.define_pool()
        problems += _left_over(arena)
    except (AllocatorError, redis.RedisError, OSError) as error:
        problems.append(f"the ports could not be had: {error}")
    arena.book.write("settled", when="all have left", problems=problems)
    for row in arena.table.lowered() if arena.table else ():
        arena.book.write("row", **row)


def _left_over(arena: Environment) -> list[str]:
    problems = []
    pool = arena.pool
    base = f"alloc:{{{pool.name}}}"
    with arena.allocator() as ports, arena.admin() as client:
        seconds, us = client.time()
        now_ms = seconds * 1_000 + us / 1_000
        deadline = time.monotonic() + (pool.ttl_ms + pool.grace_ms) / 1_000 + 2.0
        scores = {int(port): score for port, score in client.zrange(f"{base}:ports:web-1", 0, -1, withscores=True)}
        declined = {
            int(port) for port, grant in client.hgetall(f"{base}:tokens:web-1").items() if grant.startswith(b"~")
        }
        claimed = []
        for port in range(pool.first, pool.last + 1):
            if port in declined and scores.get(port, 0.0) > now_ms:
                continue  # in quarantine for up to ten minutes, by right
            wait = max(0.0, deadline - time.monotonic())
            claimed.append(ports.claim("last", org=f"last-{port}", port=port, wait=wait))
        # Whoever looks at the line takes out those who died in it; the first of these leases may have run out by now.
        with suppress(AllocatorError):
            ports.claim("last", org="line", port=claimed[-1].port, wait=0.1)
        for lease in claimed:
            ports.release(lease)
        for _ in range(1_000):
            if not ports.run(listing.reap(pool.name)).closed:
                break
        if live := ports.leases():
            problems.append(f"leases are left: {live}")
        grants = client.hvals(f"{base}:tokens:web-1")
        if open_grants := [grant for grant in grants if grant[:1] not in b"-~!"]:
            problems.append(f"grants are left open: {open_grants}")
        if left := _keys_that_are_left(arena, client, base):
            problems.append(f"keys are left: {left}")
    if listened := listening_ports(pool.first, pool.last):
        problems.append(f"ports are still listened on: {sorted(listened)}")
    return problems


def _keys_that_are_left(arena: Environment, client: Any, base: str) -> list[str]:
    """Return the keys of what is not the past.

    A line that nobody looks at is forgotten after an hour: where a waiter died in it, where the words of one came once
    more after it had left, and where Redis never heard that it left, or lost it; a leader that was killed leads for ten
    seconds.
    """
    keys = {key.decode() for key in client.scan_iter(match=f"{base}:*", count=10_000)}
    if arena.clients.somebody_died or arena.has_repeated or arena.has_lost_data or _left_unheard(arena):
        forgotten = (f"{base}:held:", f"{base}:leader")
        keys -= {key for key in keys if key.startswith(forgotten) and client.pttl(key) > 0}
    return sorted(key for key in keys if key.removeprefix(base).split(":")[1] not in KEPT)


def _left_unheard(arena: Environment) -> bool:
    """Return whether a waiter left the queue and got no answer, or gave up because Redis answered no more."""
    unheard = [call for call in read_history(arena.directory).calls if call.outcome == UNKNOWN]
    return any(call.op == "present" or (call.op == "wait" and call.items[0]["mode"] == "leave") for call in unheard)
