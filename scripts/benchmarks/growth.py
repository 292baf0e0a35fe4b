"""How the cost of a claim and its release grows: with the pool, the hosts, the live leases, and those who wait.

Every point is a pool of its own in one server, so that all points of a curve take turns. Workers never claimed before,
and the pools are half full: that is the long way through the script, not the one back to a worker's own port.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from allocator.model.pools import PoolSpec
from allocator.operations.pools import apply_pool
from allocator.protocol.signatures.queue import JoinCall
from allocator.protocol.wire import script, script_keys
from benchmarks.leases import PIPELINE, Bench
from benchmarks.servers import server
from benchmarks.table import Row, between
from benchmarks.timing import Spread, ratios, seconds_for, take_turns
from benchmarks.wire import claim_call, end_call, port_of, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.protocol.signatures.claim import ClaimCall

TTL_MS = 3_600_000
LARGEST_POOL = 65_535
PORTS_A_HOST = 1_000
FLAT = 1.2


@dataclass(frozen=True)
class Cost:
    """What one pair took, in microseconds: as the client saw it, and the server's time for its scripts."""

    us: float
    server_us: float


@dataclass(frozen=True)
class Plan:
    """The points of each curve, and how often each is measured."""

    ports: tuple[int, ...]
    hosts: tuple[int, ...]
    leases: tuple[int, ...]
    waiters: tuple[int, ...]
    rounds: int
    pairs: int


FULL = Plan(
    ports=(44, 256, 1_024, 4_096, 16_384, 60_000, LARGEST_POOL),
    hosts=(1, 10, 100, 1_000, 10_000),
    leases=(100, 1_000, 10_000, 100_000, 1_000_000),
    waiters=(0, 1, 10, 100, 1_000),
    rounds=40,
    pairs=40,
)
QUICK = Plan(ports=(44, 1_024, 8_192), hosts=(1, 100), leases=(100, 10_000), waiters=(0, 10, 100), rounds=4, pairs=20)


class Point:
    """A pool with some leases on some hosts.

    Args:
        bench: The connection.
        name: The pool.
        size: How many ports each host has.
    """

    def __init__(self, bench: Bench, name: str, size: int) -> None:
        self.bench = bench
        first = 1 if size == LARGEST_POOL else 2_000 if size > PORTS_A_HOST else 5_556
        self.pool = PoolSpec(name=name, first=first, last=first + size - 1, cooldown_ms=0, ttl_ms=TTL_MS)
        bench.run(apply_pool(self.pool))
        self._new = 0

    def next_claim(self, host: str, ticket: str = "") -> tuple[ClaimCall, str]:
        """Return the next new worker's claim, and its token."""
        self._new += 1
        token = secrets.token_hex(16)
        worker = f"org-{self._new}/crm#0"
        return claim_call(self.pool.name, host, worker, token, ttl_ms=TTL_MS, ticket=ticket), token

    def fill(self, host: str, count: int) -> None:
        """Claim some ports of a host, in pipelines."""
        self.fill_each([host] * count)

    def fill_each(self, hosts: list[str]) -> None:
        """Claim a port on each of some hosts, in pipelines."""
        for start in range(0, len(hosts), PIPELINE):
            pipeline = self.bench.redis.pipeline(transaction=False)
            for host in hosts[start : start + PIPELINE]:
                call, _ = self.next_claim(host)
                send(pipeline, call)
            for reply in pipeline.execute():
                port_of(reply)

    def pairs(self, count: int, host: str = "host-0") -> None:
        """Claim and release on one host, for workers that never claimed before."""
        for _ in range(count):
            call, token = self.next_claim(host)
            reply = send(self.bench.redis, call)
            send(self.bench.redis, end_call(self.pool.name, host, port_of(reply), token))


class Line(Point):
    """A full pool with some workers in line; a port goes from hand to hand."""

    def __init__(self, bench: Bench, waiters: int) -> None:
        super().__init__(bench, f"waiters-{waiters}", 44)
        bench.redis.script_load(script(self.join_call("").encode().script).source)
        self.fill("host-0", 43)
        self.held = self.claim("")
        self.tickets = [self.join() for _ in range(waiters)]

    def join_call(self, ticket: str) -> JoinCall:
        """Return what takes a position in the queue."""
        worker = f"org-{self._new}/crm#0"
        return JoinCall(
            pool=self.pool.name,
            namespace="host-0",
            ticket=ticket,
            host="host-0",
            worker=worker,
            priority=0,
            condition="any",
        )

    def join(self) -> str:
        """Take the last position in the queue; the waiter stays for an hour; a real one renews every second."""
        self._new += 1
        ticket = secrets.token_hex(8)
        keys = script_keys(self.pool.name, "host-0")
        send(self.bench.redis, self.join_call(ticket))
        self.bench.redis.pexpire(f"{keys[0]}:waiter:{ticket}", TTL_MS)
        self.bench.redis.hset(keys[0], "waiting", 10**14)
        return ticket

    def claim(self, ticket: str) -> tuple[bytes, str]:
        """Claim with a ticket, which has to be the first in the queue."""
        call, token = self.next_claim("host-0", ticket)
        return port_of(send(self.bench.redis, call)), token

    def hand_over(self, count: int) -> None:
        """Release, and claim as the first in the queue, `count` times; the claims of newcomers where nobody waits."""
        for _ in range(count):
            send(self.bench.redis, end_call(self.pool.name, "host-0", *self.held))
            self.held = self.claim(self.tickets.pop(0) if self.tickets else "")

    def cost(self, count: int) -> Cost:
        """Return what `count` hand-overs took; the line is filled up again between them, unmeasured."""
        wanted = len(self.tickets)
        costs = []
        for _ in range(count):
            costs.append(cost_of(self.bench, lambda: self.hand_over(1), 1))
            while len(self.tickets) < wanted:
                self.tickets.append(self.join())
        return Cost(sum(one.us for one in costs) / count, sum(one.server_us for one in costs) / count)


def cost_of(bench: Bench, action: Callable[[], object], count: int) -> Cost:
    """Return what each of the `count` pairs of an action took."""
    bench.redis.config_resetstat()
    seconds = seconds_for(action)
    return Cost(seconds / count * 1e6, bench.redis.info("commandstats")["cmdstat_evalsha"]["usec"] / count)


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return the curves: for each point the microseconds of a pair, and the ratio to the curve's first point."""
    plan = QUICK if quick else FULL
    with server(binary) as address:
        bench = Bench(address["unix"])
        bench.reset()
        return {
            "ports": _curve(plan, {size: _pool(bench, size) for size in plan.ports}),
            "hosts": _curve(plan, {hosts: _fleet(bench, hosts) for hosts in plan.hosts}),
            "leases": _curve(plan, {leases: _leases(bench, leases) for leases in plan.leases}),
            "waiters": _curve(plan, {waiters: Line(bench, waiters).cost for waiters in plan.waiters}),
        }


def _cost(point: Point) -> Callable[[int], Cost]:
    return lambda count: cost_of(point.bench, lambda: point.pairs(count), count)


def _pool(bench: Bench, size: int) -> Callable[[int], Cost]:
    point = Point(bench, f"ports-{size}", size)
    point.fill("host-0", size // 2)
    return _cost(point)


def _fleet(bench: Bench, hosts: int) -> Callable[[int], Cost]:
    point = Point(bench, f"hosts-{hosts}", 44)
    point.fill_each([f"host-{number}" for number in range(hosts)])
    return _cost(point)


def _leases(bench: Bench, leases: int) -> Callable[[int], Cost]:
    point = Point(bench, f"leases-{leases}", 2 * PORTS_A_HOST)
    point.fill_each([f"host-{number // PORTS_A_HOST}" for number in range(leases)])
    return _cost(point)


def _curve(plan: Plan, points: dict[int, Callable[[int], Cost]]) -> dict[int, dict[str, Spread]]:
    costs = take_turns({str(at): partial(cost, plan.pairs) for at, cost in points.items()}, plan.rounds)
    first = costs[str(next(iter(points)))]
    found: dict[int, dict[str, Spread]] = {}
    for at in points:
        these = costs[str(at)]
        found[at] = {
            "us": Spread.of([one.us for one in these]),
            "server_us": Spread.of([one.server_us for one in these]),
            "ratio": ratios([one.us for one in these], [one.us for one in first]),
            "server_ratio": ratios([one.server_us for one in these], [one.server_us for one in first]),
        }
    return found


NAMES = {
    "ports": "ports in a pool that is half full",
    "hosts": "hosts in the pool",
    "leases": "live leases in the pool, 1,000 on a host",
    "waiters": "waiters in the queue: a release, and the claim of the first of them",
}


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines of the table: the dearest point of each curve beside its first."""
    table = []
    for name, limit in (("ports", FLAT), ("hosts", FLAT), ("leases", FLAT), ("waiters", None)):
        curve = {int(at): point for at, point in found[name].items()}
        for key, kind in (("ratio", "time"), ("server_ratio", "server time")):
            dearest = max(curve, key=lambda at: curve[at][key].median)
            ratio = curve[dearest][key]
            what = f"{kind}, {min(curve):,} to {max(curve):,} {NAMES[name]}: the dearest ({dearest:,}) beside the first"
            met = None if limit is None else round(ratio.median, 2) <= limit
            table.append(Row(what, f"{ratio.median:.2f}", between(ratio, 2), f"≤ {limit}" if limit else "", met))
    return table


def curves(found: dict[str, Any]) -> list[str]:
    """Return the tables of all points, in Markdown."""
    lines: list[str] = []
    for name, text in NAMES.items():
        lines += [
            "",
            f"| {text} | time, µs | spread | beside the first | server time, µs | spread | beside the first |",
        ]
        lines.append("|---:|---:|---|---:|---:|---|---:|")
        for at, point in found[name].items():
            cells = [f"{int(at):,}"]
            for us, ratio in ((point["us"], point["ratio"]), (point["server_us"], point["server_ratio"])):
                cells += [f"{us.median:,.0f}", between(us, 0), f"{ratio.median:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines
