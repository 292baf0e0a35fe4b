"""The overview as a stream: all of it, then what changed, which together are what `/v1/fleet` answers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from api_server import served

from allocator import AsyncPortAllocator, PortAllocator
from allocator.api import changes as followed
from allocator.api.application import create_app
from allocator.api.changes import Changes
from allocator.api.index import FleetIndex
from allocator.model.pools import PoolSpec
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def events_of(answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = ""
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


class Follower:
    """What a page makes of the stream."""

    def __init__(self, answer: httpx.Response) -> None:
        self._events = events_of(answer)
        self.hosts: dict[str, dict[str, Any]] = {}
        self.fleet: dict[str, Any] = {}
        self.problems: list[dict[str, Any]] = []
        self.sizes: list[int] = []

    def until(self, holds: Callable[[], object]) -> None:
        """Take events until something holds; one comes every five seconds at least."""
        for _ in range(30):
            self.take()
            if holds():
                return
        raise AssertionError((self.fleet, self.hosts))

    def take(self) -> None:
        kind, data = next(self._events)
        if kind == "problems":
            self.problems = data["problems"]
            return
        hosts = data.pop("hosts")
        self.sizes.append(len(hosts))
        self.hosts = (
            {} if data["whole"] else {name: one for name, one in self.hosts.items() if name not in data["gone"]}
        )
        self.hosts |= {one["name"]: one for one in hosts}
        self.fleet = data


@pytest.fixture
def follower(http) -> Iterator[Follower]:
    with http.stream("GET", "/v1/fleet/changes") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Follower(answer)


def test_what_changed_makes_of_the_whole_what_the_fleet_is(http, follower, redis_url: str, pool) -> None:
    for number in range(5):
        with PortAllocator.from_url(redis_url, pool=pool.name, host=f"web-{number}") as ports:
            lease = ports.claim("email", org=f"org-{number}")
            if number == 3:
                ports.renew(replace(lease, state=LeaseState.DEGRADED, last_error="503"), rewrite=True)
    follower.until(lambda: follower.fleet["counts"]["starting"] == 4 and follower.fleet["counts"]["degraded"] == 1)
    follower.until(lambda: follower.problems)
    whole = http.get("/v1/fleet").json()
    assert [one["name"] for one in whole["hosts"]][:1] == ["web-3"]
    assert sorted(follower.hosts) == sorted(one["name"] for one in whole["hosts"])
    assert {name: one["ports"] for name, one in follower.hosts.items()} == {
        one["name"]: one["ports"] for one in whole["hosts"]
    }
    assert (follower.fleet["counts"], follower.fleet["problems"]) == (whole["counts"], whole["problems"])
    what = f"org-3/email#0 on web-3:{pool.first} fails its health check: 503"
    assert [one["what"] for one in follower.problems] == [what]


def test_only_hosts_that_changed_are_sent_again(follower, redis_url: str, pool) -> None:
    for number in range(4):
        with PortAllocator.from_url(redis_url, pool=pool.name, host=f"web-{number}") as ports:
            ports.claim("email", org=f"org-{number}")
    follower.until(lambda: len(follower.hosts) == 4)
    sent = len(follower.sizes)
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-2") as ports:
        ports.claim("email", org="org-9")
    follower.until(lambda: follower.hosts["web-2"]["counts"]["starting"] == 2)
    assert max(follower.sizes[sent:]) < 4


def test_a_redis_that_does_not_answer_is_reported_at_once() -> None:
    from servers import Server

    with Server() as server:
        server.ready()
        allocator = AsyncPortAllocator.from_url(server.url, host="web-1", timeout=0.5)
        with (
            served(create_app(allocator)) as url,
            httpx.Client(base_url=url, timeout=30) as http,
            http.stream("GET", "/v1/fleet/changes") as answer,
        ):
            follower = Follower(answer)
            follower.until(lambda: follower.fleet["live"])
            os.kill(server.process.pid, signal.SIGSTOP)
            follower.until(lambda: not follower.fleet["live"])
            os.kill(server.process.pid, signal.SIGCONT)
            follower.until(lambda: follower.fleet["live"])


class StandingKeeper:
    """A keeper whose index changes when the test says so."""

    def __init__(self) -> None:
        self.index = FleetIndex(PoolSpec(name="p", first=5_556, last=5_599))
        self.hub = self
        self.is_live, self.closed = True, False

    def now(self) -> float:
        return 1_700_000_000.0

    async def news(self, _seconds: float) -> None:
        await asyncio.sleep(0.001)

    def grant(self, port: int) -> None:
        fields = {"type": "granted", "host": "web-1", "port": str(port), "worker": "o/p#0", "fence": str(port)}
        self.index.apply(fields, self.now())


def test_many_share_what_is_made_once_and_one_that_falls_behind_gets_the_whole(monkeypatch) -> None:
    monkeypatch.setattr(followed, "PACE_OF_ONE_S", 0.0)
    asyncio.run(with_many(monkeypatch))


async def with_many(monkeypatch) -> None:
    keeper = StandingKeeper()
    changes = Changes(keeper)  # type: ignore[arg-type]  # all of a keeper that is used
    made = 0
    make = changes._make

    def counted() -> bytes:
        nonlocal made
        made += 1
        return make()

    monkeypatch.setattr(changes, "_make", counted)
    slow = changes.follow()
    assert b'"whole":true' in await anext(slow)
    quick = [changes.follow() for _ in range(30)]
    for one in quick:
        await anext(one)
    for port in range(5_556, 5_556 + followed.MAX_FRAMES + 5):
        keeper.grant(port)
        pieces = await asyncio.gather(*map(anext, quick))
        assert b'"whole":false' in pieces[0]
        assert all(piece is pieces[0] or piece == pieces[0] for piece in pieces)
    assert made == 1 + followed.MAX_FRAMES + 5
    assert b'"whole":true' in await anext(slow)
    keeper.closed = True
    keeper.index.version += 1
    for one in [slow, *quick]:
        with pytest.raises(StopAsyncIteration):
            await anext(one)
