"""Fifty hosts with 44 ports each, at random: what must be true at every moment, read from the event stream.

`FLEET_SECONDS=60` makes each of them last a minute; `-s` shows how much happened in it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers import client_of

from allocator import PoolSpec, PortAllocator, WorkerId
from allocator.operations import hosts, listing

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTS = 50
TTL_MS = 5_000
"""Of those who wait in line, as in fleet_host.py."""
SECONDS = float(os.environ.get("FLEET_SECONDS", "6"))
ROOT = Path(__file__).parents[2]
LIMITS = {"max_per_org": 60, "max_per_plugin": 150, "max_instances": 25}
ENDED = {"released", "declined", "expired", "superseded"}

pytestmark = pytest.mark.alone("fleet")


def run_fleet(ports: PortAllocator, url: str, spec: PoolSpec, way: str) -> Iterator[dict[str, str]]:
    """Yield every event of the pool while the fleet runs; hosts are drained and taken back meanwhile."""
    stream, cursor = f"alloc:{{{spec.name}}}:events", "0-0"
    script = Path(__file__).parent / "fleet_host.py"
    arguments = [sys.executable, str(script), url, spec.name, str(HOSTS), str(SECONDS), way]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
        draining = threading.Thread(target=drain_at_random, args=(ports, spec, process))
        draining.start()
        ended, seen = False, 0
        while True:
            events = ports.store.read_events(stream, cursor, 5_000)
            seen += len(events)
            assert trimmed(ports, stream) <= seen, "events were trimmed before they were read"
            yield from (fields | {"at": cursor.partition("-")[0]} for cursor, fields in events)
            cursor = events[-1][0] if events else cursor
            if not events:
                if ended:
                    break
                ended = process.poll() is not None
                ports.store.wait_for_event(stream, cursor, 0.2)
        draining.join()
        out = process.stdout.read() if process.stdout else ""
    assert (process.returncode, out) == (0, "")


def trimmed(ports: PortAllocator, stream: str) -> int:
    """Return how many events the stream no longer has; Redis 6.2 does not tell."""
    found = client_of(ports.store).xinfo_stream(stream)  # no other way
    return int(found.get("entries-added", 0)) - int(found["length"])


def drain_at_random(ports: PortAllocator, spec: PoolSpec, process: subprocess.Popen[str]) -> None:
    """Drain hosts, and take hosts back, as long as the fleet runs."""
    rng = random.Random(1)
    while process.poll() is None:
        name = f"host-{rng.randrange(HOSTS):02}"
        if name in {host.name for host in ports.hosts()}:
            drains = rng.random() < 0.3
            ports.run(hosts.drain(spec.name, name) if drains else listing.cordon(spec.name, name, on=False))
        ports.store.wait_for_event(f"alloc:{{{spec.name}}}:none", "0-0", 0.5)


def close_everything(ports: PortAllocator, spec: PoolSpec) -> None:
    """Reap until nothing is left that could still be told."""
    for _ in range(10_000):
        wait_s = ports.run(listing.reap(spec.name)).next_s
        if wait_s is None:
            return
        ports.store.wait_for_event(f"alloc:{{{spec.name}}}:none", "0-0", min(wait_s, 0.2) or 0.001)
    raise AssertionError("the reaper does not come to an end")


def indexed(ports: PortAllocator, spec: PoolSpec) -> set[str]:
    client = client_of(ports.store)  # the index is read as it is
    keys = client.scan_iter(match=f"alloc:{{{spec.name}}}:service:*", count=1_000)
    return {member.decode() for key in keys for member in client.zrange(key, 0, -1)}


class Books:
    """What the events say is leased, held against the promises at every one of them."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.open: dict[tuple[str, str], str] = {}
        self.counts: Counter[str] = Counter()
        self.grants = 0
        self.kinds: Counter[str] = Counter()

    def enter(self, event: dict[str, str]) -> None:
        kind, worker = event["type"], event.get("worker", "-")
        self.kinds[kind] += 1
        address = (event["host"] if self.scope == "host" else "*", event["port"])
        if kind in ENDED:
            assert self.open.pop(address) == worker, event
            self.count(worker, -1)
        elif kind == "reasserted" and self.open.get(address) == worker:
            pass  # it had run out, and its holder came before anybody saw that
        elif kind in {"granted", "reasserted"}:
            assert address not in self.open, event
            assert worker not in self.open.values(), event
            self.open[address] = worker
            self.count(worker, 1)
            self.grants += 1
            if kind == "granted":
                self.check_limits(worker)

    def names(self, worker: str) -> tuple[tuple[str, str], ...]:
        one = WorkerId.parse(worker)
        service = f"{one.org}/{one.plugin}"
        return ("max_per_org", one.org), ("max_per_plugin", one.plugin), ("max_instances", service)

    def count(self, worker: str, step: int) -> None:
        for _, name in self.names(worker):
            self.counts[name] += step

    def check_limits(self, worker: str) -> None:
        for limit, name in self.names(worker):
            assert self.counts[name] <= LIMITS[limit], (limit, name)


@pytest.mark.parametrize("scope", ["host", "fleet"])
def test_no_duplicates_and_no_limit_exceeded_at_any_moment(
    ports: PortAllocator, redis_url: str, pool: PoolSpec, scope: str
) -> None:
    width = 44 if scope == "host" else 300
    name = f"{pool.name}-{scope}"
    spec = replace(pool, name=name, last=pool.first + width - 1, scope=scope, cooldown_ms=20, **LIMITS)
    ports.apply_pool(spec)
    books = Books(scope)
    with PortAllocator.from_url(redis_url, pool=name, host="observer") as observer:
        for event in run_fleet(observer, redis_url, spec, "limits"):
            books.enter(event)
        assert {f"{lease.host}:{lease.port}" for lease in observer.leases()} <= indexed(observer, spec)
        close_everything(observer, spec)
        assert indexed(observer, spec) == {f"{lease.host}:{lease.port}" for lease in observer.leases()}
    print(f"{scope} scope: {books.grants:,} grants, {dict(books.kinds)}")
    assert books.grants > HOSTS


def test_every_wait_is_served_in_order(ports: PortAllocator, redis_url: str, pool: PoolSpec) -> None:
    """Thirty ports for fifty hosts that all wait: one queue, and who is served leaves ports for all who came before."""
    name = f"{pool.name}-line"
    spec = replace(pool, name=name, last=pool.first + 29, scope="fleet", cooldown_ms=0)
    ports.apply_pool(spec)
    with PortAllocator.from_url(redis_url, pool=name, host="observer") as observer:
        events = list(run_fleet(observer, redis_url, spec, "line"))
    line: list[str] = []
    waits: list[tuple[int, str, list[str]]] = []
    for number, event in enumerate(events):
        if event["type"] == "queued":
            line.append(event["worker"])
        elif event["type"] == "granted" and event["worker"] in line:
            at = line.index(event["worker"])
            waits.append((number, event["worker"], line[:at]))
            del line[at]
    served = {worker for _, worker, _ in waits}
    print(f"line: {len(waits):,} waits served")
    assert len(waits) > 20
    lives = lives_of_leases(events)
    passed_by = []
    for number, worker, before in waits:
        now = int(events[number]["at"])
        leased = sum(since < number < until and now < until_ms for since, until, until_ms in lives)
        if ahead := [one for one in before if one in served]:
            passed_by += [(worker, ahead)] if leased + len(ahead) >= spec.size else []
    assert passed_by == []


def lives_of_leases(events: list[dict[str, str]]) -> list[tuple[int, int, int]]:
    """Return from which event to which, and until when in ms, each lease surely lived.

    A renewal makes no event, and a release of one that ran out may be the first that is seen of its end: so it surely
    lived for a TTL from its last event at most.
    """
    began: dict[str, int] = {}
    last: dict[str, int] = {}
    lives = []
    for number, event in enumerate(events):
        port, kind = event["port"], event["type"]
        if port in began and kind in ENDED | {"reasserted"}:
            lives.append((began.pop(port), number, last[port] + TTL_MS))
        if kind in {"granted", "reasserted"}:
            began[port] = number
        last[port] = int(event["at"])
    return lives + [(since, len(events), last[port] + TTL_MS) for port, since in began.items()]
