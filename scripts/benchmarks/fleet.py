"""A whole fleet on one server and on a Cluster of three: heartbeats, claims beside them, half of the hosts gone."""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import random
import secrets
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.crc import key_slot

from allocator.client.heartbeats import T1, T1_SPREAD
from allocator.model.leases import Lease
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.model.states import LeaseState
from allocator.operations.listing import reap
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew
from allocator.protocol.signatures.claim import ClaimCall, Granted
from allocator.protocol.wire import pool_key
from benchmarks.leases import Bench
from benchmarks.servers import server
from benchmarks.table import Row
from benchmarks.wire import claim_call, end_call, load, port_of, send

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

PORTS = 44
TTL_MS = 30_000
PERIOD_S = TTL_MS / 1_000 * T1
"""How often a holder renews on average: see `HeartbeatPlan`."""
MAKING_TTL_MS = 1_200_000
"""Leases are kept for so long while the fleet is made; no reaper visits meanwhile, who would believe it."""
STORM_AFTER_S, STORM_WATCHED_S = 12.0, 35.0
SLOW_US = 5_000
PROBE_PERIOD_S = 0.005
PIPELINE = 400


class Fleet:
    """Hosts that hold all their ports in one pool of one server.

    Args:
        url: The server.
        pool: The pool's name.
        hosts: How many.
    """

    def __init__(self, url: str, pool: str, hosts: int) -> None:
        self.bench = Bench(url)
        self.redis: Any = Redis.from_url(url, protocol=2)
        self.pool = PoolSpec(name=pool, first=5_556, last=5_556 + PORTS, cooldown_ms=0)
        self.hosts = hosts
        self.held: list[list[tuple[int, str, int, WorkerId]]] = []
        self.rng = random.Random(hosts)
        self.beats, self.closed, self.closed_at = 0, 0, 0.0

    def populate(self) -> None:
        """Claim every port of every host but one, which the probe takes."""
        self.bench.run(apply_pool(self.pool))
        pipeline = self.redis.pipeline(transaction=False)
        load(self.redis)
        batch: list[tuple[int, WorkerId, str]] = []
        for host in range(self.hosts):
            self.held.append([])
            for number in range(PORTS):
                worker = WorkerId(f"org-{host % 997}", f"plugin-{number % 13}", host // 997 * PORTS + number)
                token = secrets.token_hex(16)
                send(pipeline, ready_call(self.pool.name, f"host-{host}", str(worker), token, f"m{host} b n 10.0.0.1"))
                batch.append((host, worker, token))
            if len(batch) >= PIPELINE or host == self.hosts - 1:
                for (of_host, worker, token), reply in zip(batch, pipeline.execute(), strict=True):
                    answered = ready_call(self.pool.name, f"host-{of_host}", str(worker), token, "-").decode(reply)
                    if not isinstance(answered, Granted):
                        raise SystemExit(f"a claim was answered {answered}")
                    (lease,) = answered.leases
                    self.held[of_host].append((lease.port, token, lease.fence, worker))
                for made in sorted({of_host for of_host, _, _ in batch}):
                    self.beat(made, MAKING_TTL_MS, reaps=False)
                batch.clear()

    def beat(self, host: int, ttl_ms: int = TTL_MS, *, reaps: bool = True) -> None:
        """Do what a holder's heartbeat does: renew all leases of a host, and reap where the answer asks for it."""
        leases = [self._lease(host, ttl_ms, *one) for one in self.held[host]]
        outcomes = self.bench.run(renew(self.bench.context, leases))
        self.beats += 1
        if any(outcome.lost or outcome.reasserted for outcome in outcomes):
            raise SystemExit(f"host-{host} did not renew all its leases; is this machine too busy to measure on?")
        if reaps and outcomes[0].reap_due and (closed := self.bench.run(reap(self.pool.name)).closed):
            self.closed += closed
            self.closed_at = time.perf_counter()

    def renew_all(self) -> None:
        """Renew every host now, so that none is late when the next part begins."""
        for host in range(self.hosts):
            self.beat(host, reaps=False)

    def _lease(self, host: int, ttl_ms: int, port: int, token: str, fence: int, worker: WorkerId) -> Lease:
        return Lease(
            pool=self.pool.name,
            host=f"host-{host}",
            port=port,
            worker=worker,
            state=LeaseState.READY,
            fence=fence,
            ttl_ms=ttl_ms,
            granted_at=0.0,
            expires_at=0.0,
            token=token,
        )

    def next_beat_s(self) -> float:
        """Return after how many seconds a host that renewed renews again: as `HeartbeatPlan` decides."""
        return TTL_MS / 1_000 * self.rng.uniform(T1 - T1_SPREAD / 2, T1 + T1_SPREAD / 2)

    def network_bytes(self) -> int:
        """Return how many bytes the server has read and written."""
        info = self.redis.info("stats")
        return int(info["total_net_input_bytes"]) + int(info["total_net_output_bytes"])

    def cpu_s(self) -> float:
        """Return the processor time that the server has used, in seconds."""
        info = self.redis.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def slow_calls(self) -> int:
        """Return how many calls took longer than 5 ms since the last time, and forget them."""
        count = int(self.redis.slowlog_len())
        self.redis.slowlog_reset()
        return count


def ready_call(pool: str, host: str, worker: str, token: str, identity: str) -> ClaimCall:
    """Return the claim of a worker that listens at once."""
    return claim_call(pool, host, worker, token, ttl_ms=TTL_MS, identity=identity, state=LeaseState.READY)


def probe(url: str, pool: str, connection: Connection) -> None:
    """Claim and release beside the heartbeats until stopped; send the claims' times in milliseconds."""
    client: Any = Redis.from_url(url, protocol=2)
    load(client)
    times: list[float] = []
    at = 0
    while not connection.poll(PROBE_PERIOD_S):
        token, at = secrets.token_hex(16), at + 1
        began = time.perf_counter()
        reply = send(client, ready_call(pool, "probe", f"probe/plugin#{at % 40}", token, "m b n 10.0.0.1"))
        times.append((time.perf_counter() - began) * 1_000)
        send(client, end_call(pool, "probe", port_of(reply), token))
    connection.send(times)


@contextlib.contextmanager
def probing(url: str, pool: str) -> Iterator[list[float]]:
    """Measure claims in a process of their own; the list is filled at the end."""
    times: list[float] = []
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=probe, args=(url, pool, theirs))
    process.start()
    try:
        yield times
    finally:
        ours.send("stop")
        times += ours.recv()
        process.join()


def heartbeats(fleets: list[Fleet], seconds: float, first: int = 0) -> None:
    """Renew every host from `first` on when it is due, as holders do that run on their own."""
    now = began = time.perf_counter()
    due = [
        (began + fleet.rng.uniform(0, fleet.next_beat_s()), at, host)
        for at, fleet in enumerate(fleets)
        for host in range(first, fleet.hosts)
    ]
    heapq.heapify(due)
    while now < began + seconds:
        when, at, host = due[0]
        if when > now:
            time.sleep(when - now)
        fleets[at].beat(host)
        now = time.perf_counter()
        heapq.heapreplace(due, (max(when, now - PERIOD_S) + fleets[at].next_beat_s(), at, host))


def steady(fleets: list[Fleet], urls: list[str], seconds: float) -> dict[str, Any]:
    """Return what heartbeats take (by the beat: a slow client tells no lower figure), then claims beside them."""
    for fleet in fleets:
        fleet.renew_all()
        fleet.slow_calls()
        fleet.beats = 0
    before = [(fleet.cpu_s(), fleet.network_bytes()) for fleet in fleets]
    began = time.perf_counter()
    heartbeats(fleets, seconds)
    took_s = time.perf_counter() - began
    rate = [fleet.hosts / PERIOD_S / fleet.beats for fleet in fleets]
    taken = {
        "cpu": [(fleet.cpu_s() - used) * per for fleet, (used, _), per in zip(fleets, before, rate, strict=True)],
        "network": [
            (fleet.network_bytes() - was) * per for fleet, (_, was), per in zip(fleets, before, rate, strict=True)
        ],
        "kept_up": sum(fleet.beats for fleet in fleets) * PERIOD_S / took_s / sum(fleet.hosts for fleet in fleets),
    }
    for fleet in fleets:
        fleet.renew_all()
    with probing(urls[0], fleets[0].pool.name) as times:
        heartbeats(fleets, seconds / 2)
    return taken | {"claims_ms": quantiles(times), "slow": sum(fleet.slow_calls() for fleet in fleets)}


def storm(fleet: Fleet, url: str) -> dict[str, Any]:
    """Let half of the hosts' leases run out at one moment; return what claims and calls took meanwhile."""
    fleet.renew_all()
    began = time.perf_counter()
    for host in range(fleet.hosts // 2):
        fleet.beat(host, max(100, int((began + STORM_AFTER_S - time.perf_counter()) * 1_000)))
    fleet.slow_calls()
    fleet.closed = 0
    with probing(url, fleet.pool.name) as times:
        heartbeats([fleet], began + STORM_WATCHED_S - time.perf_counter(), fleet.hosts // 2)
    return {
        "claims_ms": quantiles(times),
        "slow": fleet.slow_calls(),
        "gone": fleet.hosts // 2 * PORTS,
        "told": fleet.closed,
        "told_s": fleet.closed_at - began - STORM_AFTER_S,
    }


def quantiles(times: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum."""
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"median": cuts[49], "p99": cuts[98], "max": max(times), "count": len(times)}


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return all figures: one server, the storm, three nodes."""
    hosts, seconds = (300, 5.0) if quick else (10_000, 2 * PERIOD_S)
    with server(binary) as address:
        fleet = Fleet(address["unix"], "fleet", hosts)
        fleet.redis.config_set("slowlog-log-slower-than", SLOW_US)
        empty = fleet.redis.info("memory")["used_memory"]
        fleet.populate()
        bytes_per_lease = (fleet.redis.info("memory")["used_memory"] - empty) / hosts / PORTS
        one = steady([fleet], [address["unix"]], seconds)
        gone = storm(fleet, address["unix"])
    one["bytes_per_lease"] = bytes_per_lease
    return {"hosts": hosts, "one": one, "storm": gone, "cluster": _cluster(hosts, seconds)}


def _cluster(hosts: int, seconds: float) -> dict[str, Any]:
    tests = Path(__file__).resolve().parents[2] / "tests"
    sys.path.append(str(tests))
    from servers import cluster

    with cluster() as nodes:
        urls = [node.url for node in nodes]
        fleets = [Fleet(url, _pool_on(number), hosts // 3) for number, url in enumerate(urls)]
        for fleet in fleets:
            fleet.redis.config_set("slowlog-log-slower-than", SLOW_US)
            fleet.populate()
        return steady(fleets, urls, seconds)


def _pool_on(node: int) -> str:
    """Return a pool's name whose keys are of the node that has that third of the slots."""
    return next(
        name for name in (f"fleet-{at}" for at in range(10_000)) if key_slot(pool_key(name).encode()) // 5_462 == node
    )


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines of the table."""
    hosts, one, gone, three = found["hosts"], found["one"], found["storm"], found["cluster"]
    what = f"{hosts:,} hosts with {PORTS} leases each, heartbeats at TTL 30 s"
    busiest = max(three["cpu"])
    return [
        Row(f"{what}: one server", f"{one['cpu'][0]:.1%} of a core", "", "≤ 12 %", one["cpu"][0] <= 0.12),
        Row(
            "leases that one node carries at half of a core, by that figure",
            f"{hosts * PORTS * 0.5 / one['cpu'][0]:,.0f}",
            f"the holders sent {one['kept_up']:.0%} of the heartbeats in time",
            "",
            None,
        ),
        Row(f"{what}: read and written", f"{one['network'][0] / 1e6:.1f} MB a second", "", "", None),
        Row(f"{what}: memory for a lease", f"{one['bytes_per_lease']:,.0f} bytes", "", "", None),
        _claims(f"{what}: claims beside them, 99th percentile", one["claims_ms"]),
        _slow(f"{what}: calls over 5 ms", one["slow"]),
        _claims("half of the hosts' leases run out at once: claims, 99th percentile", gone["claims_ms"]),
        _slow("half of the hosts' leases run out at once: calls over 5 ms", gone["slow"]),
        Row(
            "half of the hosts' leases run out at once: all of these ends are reported after",
            f"{gone['told_s']:.1f} s",
            f"{gone['told']:,} of {gone['gone']:,}",
            "",
            None,
        ),
        Row(f"{what}: Cluster of 3, the busiest node", f"{busiest:.1%} of a core", "", "", None),
        _slow(f"{what}: Cluster of 3, calls over 5 ms", three["slow"]),
    ]


def _claims(what: str, times: dict[str, float]) -> Row:
    spread = f"median {times['median']:.2f}, max {times['max']:.1f}"
    return Row(what, f"{times['p99']:.2f} ms", spread, "≤ 5 ms", times["p99"] <= 5)


def _slow(what: str, count: int) -> Row:
    return Row(what, f"{count}", "", "0", count == 0)
