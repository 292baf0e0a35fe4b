"""A whole fleet on one server and on a Cluster of three: heartbeats, claims beside them, half of the hosts gone."""

from __future__ import annotations

import contextlib
import multiprocessing
import secrets
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.crc import key_slot

from allocator.model.pools import PoolSpec
from allocator.protocol.keys import pool_key, script_keys
from allocator.protocol.pools import apply_pool
from allocator.protocol.scripts import script
from benchmarks.leases import Bench
from benchmarks.servers import server
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

PORTS = 44
TTL_MS, PERIOD_S = 30_000, 15.0
POPULATE_TTL_MS = 3_600_000
"""Leases live this long until the first heartbeat, so that none runs out while the fleet is made."""
STORM_AFTER_S, STORM_WATCHED_S = 8.0, 15.0
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
        self.held: list[list[tuple[str, str, str, str]]] = []

    def populate(self) -> None:
        """Claim every port of every host but one, which the probe takes."""
        self.bench.run(apply_pool(self.pool))
        sha1, pipeline = script("claim").sha1, self.redis.pipeline(transaction=False)
        self.redis.script_load(script("claim").source)
        self.redis.script_load(script("renew").source)
        self.redis.script_load(script("reap").source)
        batch: list[tuple[int, str, str]] = []
        for host in range(self.hosts):
            self.held.append([])
            for number in range(PORTS):
                worker, token = f"org-{host % 997}/plugin-{number % 13}#{host}", secrets.token_hex(16)
                args = (
                    f"host-{host}",
                    worker,
                    token,
                    POPULATE_TTL_MS,
                    0,
                    0,
                    "ready",
                    "",
                    f"m{host} b n 10.0.0.1",
                    0,
                    "",
                )
                pipeline.evalsha(sha1, 2, *script_keys(self.pool.name, f"host-{host}"), *args)
                batch.append((host, worker, token))
            if len(batch) >= PIPELINE or host == self.hosts - 1:
                for (of_host, worker, token), reply in zip(batch, pipeline.execute(), strict=True):
                    text = reply[1].decode()
                    port, fence = text.split('"port":')[1].split(",")[0], text.split('"fence":')[1].split(",")[0]
                    self.held[of_host].append((port, token, fence, worker))
                batch.clear()

    def beat(self, host: int, ttl_ms: int = TTL_MS) -> None:
        """Renew all leases of a host in one call, and reap as a holder does."""
        words: list[object] = [f"host-{host}", "-"]
        for port, token, fence, worker in self.held[host]:
            words += (port, token, fence, ttl_ms, worker, "keep", "ready", "")
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.evalsha(script("renew").sha1, 2, *script_keys(self.pool.name, f"host-{host}"), *words)
        pipeline.evalsha(script("reap").sha1, 2, *script_keys(self.pool.name), 64)
        pipeline.execute()

    def cpu_s(self) -> float:
        """Return the processor time that the server has used, in seconds."""
        info = self.redis.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def slow_calls(self) -> int:
        """Return how many calls took longer than 5 ms since the last time, and forget them."""
        count = int(self.redis.slowlog_len())
        self.redis.slowlog_reset()
        return count


def probe(url: str, pool: str, connection: Connection) -> None:
    """Claim and release beside the heartbeats until told to stop; send the claims' times in milliseconds."""
    client: Any = Redis.from_url(url, protocol=2)
    keys, sha1, give = script_keys(pool, "probe"), script("claim").sha1, client.script_load(script("release").source)
    times: list[float] = []
    at = 0
    while not connection.poll(PROBE_PERIOD_S):
        token, at = secrets.token_hex(16), at + 1
        began = time.perf_counter()
        args = ("probe", f"probe/plugin#{at % 40}", token, TTL_MS, 0, 0, "ready", "", "m b n 10.0.0.1", 0, "")
        reply = client.evalsha(sha1, 2, *keys, *args)
        times.append((time.perf_counter() - began) * 1_000)
        client.evalsha(give, 2, *keys, reply[1].decode().split('"port":')[1].split(",")[0], token)
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


def heartbeats(fleets: list[Fleet], seconds: float, first: int = 0) -> float:
    """Renew every host from `first` on once in a period, evenly; return the seconds that it took."""
    began, each = time.perf_counter(), [(fleet, host) for host in range(first, fleets[0].hosts) for fleet in fleets]
    pace = PERIOD_S / len(each)
    for number in range(int(seconds / pace)):
        fleet, host = each[number % len(each)]
        fleet.beat(host)
        ahead = began + (number + 1) * pace - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
    return time.perf_counter() - began


def steady(fleets: list[Fleet], urls: list[str], seconds: float) -> dict[str, Any]:
    """Return what heartbeats take, and claims beside them."""
    for fleet in fleets:
        for host in range(fleet.hosts):
            fleet.beat(host)
        fleet.slow_calls()
    before = [fleet.cpu_s() for fleet in fleets]
    with probing(urls[0], fleets[0].pool.name) as times:
        took = heartbeats(fleets, seconds)
    cpu = [(fleet.cpu_s() - used) / took for fleet, used in zip(fleets, before, strict=True)]
    return {"cpu": cpu, "took_s": took, "claims_ms": quantiles(times), "slow": sum(f.slow_calls() for f in fleets)}


def storm(fleet: Fleet, url: str) -> dict[str, Any]:
    """Let half of the hosts' leases run out at one moment; return what claims and calls took meanwhile."""
    at = time.perf_counter() + STORM_AFTER_S
    for host in range(fleet.hosts // 2):
        fleet.beat(host, max(100, int((at - time.perf_counter()) * 1_000)))
    fleet.slow_calls()
    with probing(url, fleet.pool.name) as times:
        heartbeats([fleet], STORM_WATCHED_S, fleet.hosts // 2)
    return {"claims_ms": quantiles(times), "slow": fleet.slow_calls()}


def quantiles(times: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum."""
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"median": cuts[49], "p99": cuts[98], "max": max(times), "count": len(times)}


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return all figures: one server, the storm, three nodes."""
    hosts, seconds = (300, 5.0) if quick else (10_000, 2 * PERIOD_S)
    with server(binary) as place:
        fleet = Fleet(place["unix"], "fleet", hosts)
        fleet.redis.config_set("slowlog-log-slower-than", SLOW_US)
        fleet.populate()
        one = steady([fleet], [place["unix"]], seconds)
        gone = storm(fleet, place["unix"])
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
        Row(f"{what}: one server", f"{one['cpu'][0]:.1%} of a core", "", "≤ 15 %", one["cpu"][0] <= 0.15),
        _claims(f"{what}: claims beside them, 99th percentile", one["claims_ms"]),
        _slow(f"{what}: calls over 5 ms", one["slow"]),
        _claims("half of the hosts' leases run out at once: claims, 99th percentile", gone["claims_ms"]),
        _slow("half of the hosts' leases run out at once: calls over 5 ms", gone["slow"]),
        Row(f"{what}: Cluster of 3, the busiest node", f"{busiest:.1%} of a core", "", "", None),
        _slow(f"{what}: Cluster of 3, calls over 5 ms", three["slow"]),
    ]


def _claims(what: str, times: dict[str, float]) -> Row:
    spread = f"median {times['median']:.2f}, max {times['max']:.1f}"
    return Row(what, f"{times['p99']:.2f} ms", spread, "≤ 5 ms", times["p99"] <= 5)


def _slow(what: str, count: int) -> Row:
    return Row(what, f"{count}", "", "0", count == 0)
