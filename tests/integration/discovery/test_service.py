"""The client-side balancer: current by events, even, without Redis in the way, and past workers that refuse."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from servers import Server, wait_until
from workers import Worker, fleet

from allocator import (
    AsyncPluginTransport,
    AsyncPortAllocator,
    InvalidInputError,
    LeaseState,
    NoWorkerError,
    PluginTransport,
    PoolSpec,
    PortAllocator,
    Service,
)
from allocator.operations.hosts import drain

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def workers(redis_url: str, pool: PoolSpec) -> Iterator[list[Worker]]:
    with fleet(redis_url, pool.name, "web-1", "web-2", replicas=2) as running:
        yield running


def test_resolve_in_the_library_takes_turns_over_all_hosts(ports: PortAllocator, workers: list[Worker]) -> None:
    counts = Counter(ports.resolve("email", org="org-123").port for _ in range(9))
    assert len(counts) == 4 or len({worker.lease.address for worker in workers}) == 4
    found = Counter(ports.resolve("email", org="org-123").worker for _ in range(8))
    assert set(found.values()) == {2}
    assert ports.resolve("email", org="org-123").address == "127.0.0.1"


def test_resolve_waits_until_a_worker_is_ready(redis_url: str, pool: PoolSpec, ports: PortAllocator) -> None:
    with pytest.raises(NoWorkerError, match="start one"):
        ports.resolve("email", org="org-123")
    worker = Worker(ports)
    with pytest.raises(NoWorkerError, match="its only worker is starting"):
        ports.resolve("email", org="org-123", wait=0.05)

    async def later() -> int:
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-9") as asking:
            wait_for_event, waits = asking.store.wait_for_event, asyncio.Event()

            async def seen(*arguments: Any) -> str | None:
                waits.set()
                return await wait_for_event(*arguments)

            asking.store.wait_for_event = seen
            waiting = asyncio.create_task(asking.resolve("email", org="org-123", wait=20))
            await asyncio.wait_for(waits.wait(), 20)
            await asyncio.to_thread(worker.ready)
            return (await waiting).port

    assert asyncio.run(later()) == worker.lease.port
    worker.stop()


def test_a_service_picks_evenly_and_asks_redis_for_nothing(
    redis_url: str, pool: PoolSpec, workers: list[Worker]
) -> None:
    with Service("email", org="org-123", url=redis_url, pool=pool.name, rng=random.Random(1)) as email:
        counts = Counter(email.pick().worker for _ in range(400))
        assert sorted(counts.values()) == [100] * 4


def test_a_service_follows_workers_that_come_drain_and_go(
    redis_url: str, pool: PoolSpec, workers: list[Worker]
) -> None:
    with Service("email", org="org-123", url=redis_url, pool=pool.name) as email:
        assert len(email.endpoints) == 4
        workers[0].set(LeaseState.DRAINING)
        wait_until(lambda: len(email.endpoints) == 3, "the draining worker stayed")
        workers[1].stop()
        wait_until(lambda: len(email.endpoints) == 2, "the worker that ended stayed")
        workers[2].allocator.run(drain(pool.name, "web-2"))
        wait_until(lambda: not email.endpoints, "the drained host stayed")
        with pytest.raises(NoWorkerError, match="no worker of org-123/email is ready"):
            email.pick()


def test_changes_come_as_up_and_down(redis_url: str, pool: PoolSpec, workers: list[Worker]) -> None:
    with Service("email", org="org-123", url=redis_url, pool=pool.name) as email:
        changes = email.changes(seconds=20)
        assert Counter(next(changes)[0] for _ in range(4)) == {"up": 4}
        workers[3].set(LeaseState.DEGRADED)
        change, endpoint = next(changes)
        assert (change, endpoint.worker) == ("down", workers[3].lease.worker)
        workers[3].set(LeaseState.READY)
        assert next(changes)[0] == "up"


def test_a_worker_that_refuses_is_left_out_and_comes_back(
    redis_url: str, pool: PoolSpec, workers: list[Worker]
) -> None:
    now = [1_000.0]
    with Service("email", org="org-123", url=redis_url, pool=pool.name, clock=lambda: now[0]) as email:
        bad = email.pick()
        email.eject(bad)
        assert bad not in {email.pick() for _ in range(8)}
        now[0] += 1.1
        assert bad in {email.pick() for _ in range(8)}
        email.eject(bad)
        now[0] += 1.1  # the second time for twice as long
        assert bad not in {email.pick() for _ in range(8)}
        email.restore(bad)
        assert bad in {email.pick() for _ in range(8)}


def test_when_all_are_left_out_the_first_of_them_is_tried(
    redis_url: str, pool: PoolSpec, workers: list[Worker]
) -> None:
    now = [0.0]
    with Service("email", org="org-123", url=redis_url, pool=pool.name, clock=lambda: now[0]) as email:
        order = []
        for endpoint in email.endpoints:
            email.eject(endpoint)
            order.append(endpoint)
            now[0] += 0.01
        assert email.pick() == order[0]


def test_workers_of_this_host_come_first_when_asked_for(redis_url: str, pool: PoolSpec, workers: list[Worker]) -> None:
    with Service("email", org="org-123", url=redis_url, pool=pool.name, host="web-2", prefer_local=True) as email:
        assert {email.pick().host for _ in range(8)} == {"web-2"}
        for endpoint in email.endpoints:
            if endpoint.host == "web-2":
                email.eject(endpoint)
        assert {email.pick().host for _ in range(8)} == {"web-1"}


def test_what_is_known_stays_while_redis_is_away_and_is_current_again_afterwards() -> None:
    spec = PoolSpec(name="away", first=14_800, last=14_840, ttl_ms=60_000)
    with Server() as server:
        url = server.ready().url
        with PortAllocator.from_url(url, pool="away", host="web-1") as ports:
            ports.apply_pool(spec)
        with (
            fleet(url, "away", "web-1", replicas=2) as workers,
            Service("email", org="org-123", url=url, pool="away") as email,
        ):
            assert len(email.endpoints) == 2
            server.process.send_signal(19)
            assert len({email.pick() for _ in range(10)}) == 2
            server.process.send_signal(18)
            workers[0].set(LeaseState.DRAINING)
            wait_until(lambda: len(email.endpoints) == 1, "the directory did not come back")


def test_httpx_sends_a_request_to_the_next_worker_under_the_services_name(
    redis_url: str, pool: PoolSpec, workers: list[Worker]
) -> None:
    with httpx.Client(transport=PluginTransport(redis_url, pool=pool.name), trust_env=False) as client:
        answers = [client.get("http://email.org-123.plugin/health?x=1").text for _ in range(8)]
        assert set(Counter(answers).values()) == {2}
        assert all(answer.endswith(" email.org-123.plugin /health?x=1") for answer in answers)


def test_httpx_passes_by_a_worker_that_refuses_and_sends_the_body_to_another(
    redis_url: str, pool: PoolSpec, workers: list[Worker]
) -> None:
    workers[0].close_socket()
    with httpx.Client(transport=PluginTransport(redis_url, pool=pool.name), trust_env=False) as client:
        for number in range(12):
            assert client.post("http://email.org-123.plugin/", content=b"n%d" % number).status_code == 200
    got = sorted(body for worker in workers for body in worker.bodies)
    assert got == sorted(b"n%d" % number for number in range(12))


def test_httpx_raises_its_own_error_when_every_worker_refuses_and_ours_when_there_is_none(
    redis_url: str, pool: PoolSpec, workers: list[Worker]
) -> None:
    for worker in workers:
        worker.close_socket()
    with httpx.Client(transport=PluginTransport(redis_url, pool=pool.name), trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            client.get("http://email.org-123.plugin/")
        with pytest.raises(NoWorkerError):
            client.get("http://email.org-9.plugin/")
        with pytest.raises(InvalidInputError, match="names no service"):
            client.get("http://email.plugin/")


def test_httpx_async_does_the_same(redis_url: str, pool: PoolSpec, workers: list[Worker]) -> None:
    workers[1].close_socket()

    async def scenario() -> list[str]:
        transport = AsyncPluginTransport(redis_url, pool=pool.name)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            answers = await asyncio.gather(*(client.get("http://email.org-123.plugin/") for _ in range(9)))
            return [answer.text.split()[0] for answer in answers]

    counts = Counter(asyncio.run(scenario()))
    assert sum(counts.values()) == 9
    assert str(workers[1].lease.worker) not in counts
