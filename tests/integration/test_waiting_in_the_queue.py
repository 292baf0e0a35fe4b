"""Waiting with real clients: served in order, woken by the release, past a waiter that was killed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers import client_of

from allocator import AsyncPortAllocator, ExhaustedError, InvalidInputError, LimitError, PoolSpec, PortAllocator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from allocator import Lease

ROOT = Path(__file__).parents[2]
WAITER = """
import sys
from allocator import PortAllocator
url, pool, number = sys.argv[1:]
with PortAllocator.from_url(url, pool=pool, host="web-1") as ports:
    print("waits", flush=True)
    print(ports.claim("email", org="waiter", instance=int(number), wait=60).port, flush=True)
"""


@pytest.fixture
def small(ports: PortAllocator, pool: PoolSpec) -> PoolSpec:
    """The pool with two ports."""
    spec = replace(pool, last=pool.first + 1)
    ports.apply_pool(spec)
    ports.session.context.rules.clear()
    return spec


def queued(ports: PortAllocator, pool: PoolSpec) -> list[str]:
    events = ports.store.newest_events(f"alloc:{{{pool.name}}}:events", 10_000)
    return [fields["worker"] for _, fields in events if fields["type"] == "queued"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def order_of_service(
    ports: PortAllocator,
    redis_url: str,
    pool: PoolSpec,
    ended: Sequence[Lease],
    claims: Sequence[Callable[[AsyncPortAllocator, int], Awaitable[Sequence[Lease]]]],
) -> list[int]:
    """Return in which order waiters are served that came one after the other, once leases are ended."""
    served: list[int] = []

    async def scenario() -> None:
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as waiting:

            async def wait(number: int) -> None:
                leases = await claims[number](waiting, number)
                served.append(number)
                for lease in leases:
                    await waiting.release(lease)

            tasks = []
            for number in range(len(claims)):
                tasks.append(asyncio.create_task(wait(number)))
                await asyncio.to_thread(until, lambda count=number + 1: len(queued(ports, pool)) == count)
            for lease in ended:
                await asyncio.to_thread(ports.release, lease)
            await asyncio.gather(*tasks)

    asyncio.run(scenario())
    return served


async def one_port(waiting: AsyncPortAllocator, number: int) -> list[Lease]:
    return [await waiting.claim("email", org="waiter", instance=number, wait=30)]


async def two_ports(waiting: AsyncPortAllocator, number: int) -> list[Lease]:
    both = await waiting.claim_ports("email", ["http", "debug"], org="waiter", instance=number, wait=30)
    return list(both.values())


def test_waiters_are_served_in_the_order_in_which_they_came(
    redis_url: str, small: PoolSpec, ports: PortAllocator
) -> None:
    held = [ports.claim("email", org="first", instance=number) for number in range(2)]
    assert order_of_service(ports, redis_url, small, held[:1], [one_port] * 20) == list(range(20))
    assert queued(ports, small) == [f"waiter/email#{number}" for number in range(20)]


def test_a_waiter_that_was_killed_holds_up_the_queue_for_less_than_two_seconds(
    redis_url: str, small: PoolSpec, ports: PortAllocator
) -> None:
    held = [ports.claim("email", org="first", instance=number) for number in range(2)]
    arguments = [sys.executable, "-c", WAITER, redis_url, small.name, "0"]
    dies = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    until(lambda: len(queued(ports, small)) == 1)
    served: list[Lease] = []
    second = threading.Thread(
        target=lambda: served.append(ports.claim("email", org="waiter", instance=1, wait=60)), daemon=True
    )
    second.start()
    until(lambda: len(queued(ports, small)) == 2)
    dies.kill()
    dies.communicate()
    ports.release(held[0])
    second.join(20)
    assert [lease.port for lease in served] == [held[0].port]


def test_who_gives_up_waiting_reports_it_and_leaves_the_queue(ports: PortAllocator, small: PoolSpec) -> None:
    held = [ports.claim("email", org="first", instance=number) for number in range(2)]
    with pytest.raises(ExhaustedError, match="no port of pool"):
        ports.claim("email", org="waiter", wait=0.1)
    ports.release(held[0])
    assert ports.claim("email", org="newcomer").port == held[0].port


def test_a_waiter_whose_limit_is_reached_goes_on_when_one_of_its_own_leases_ends(
    redis_url: str, ports: PortAllocator, pool: PoolSpec
) -> None:
    ports.apply_pool(replace(pool, max_per_org=1))
    held = ports.claim("email", org="o")
    with pytest.raises(LimitError, match="max_per_org"):
        ports.claim("stripe", org="o")
    threading.Timer(0.2, ports.release, [held]).start()
    assert ports.claim("stripe", org="o", wait=30).org == "o"


def test_a_higher_priority_is_served_first(ports: PortAllocator, small: PoolSpec) -> None:
    held = [ports.claim("email", org="first", instance=number) for number in range(2)]
    served: list[int] = []

    def wait(priority: int) -> None:
        lease = ports.claim("email", org="waiter", instance=priority, priority=priority, wait=30)
        served.append(priority)
        ports.release(lease)

    threads = []
    for priority in (0, 5, 9):
        threads.append(threading.Thread(target=wait, args=(priority,), daemon=True))
        threads[-1].start()
        until(lambda: len(queued(ports, small)) == len(threads))
    ports.release(held[0])
    for thread in threads:
        thread.join(30)
    assert served == [9, 5, 0]
    with pytest.raises(InvalidInputError, match="priority"):
        ports.claim("email", org="o", priority=10)


def test_waiting_survives_a_redis_that_forgot_everything(ports: PortAllocator, small: PoolSpec) -> None:
    held = [ports.start_heartbeats(ports.claim("email", org="first", instance=number, ttl=1)) for number in range(2)]
    served: list[Lease] = []
    waiter = threading.Thread(target=lambda: served.append(ports.claim("email", org="waiter", wait=60)), daemon=True)
    waiter.start()
    until(lambda: len(queued(ports, small)) == 1)
    sockets = [socket.create_server(("127.0.0.1", one.port)) for one in held]
    for key in client_of(ports.store).scan_iter(match=f"alloc:{{{small.name}}}*"):  # no other way
        client_of(ports.store).delete(key)
    until(lambda: len(ports.leases()) == 2)
    for one in sockets:
        one.close()
    ports.end_held(held[1])
    waiter.join(30)
    assert [lease.port for lease in served] == [held[1].port]


def test_waits_for_several_ports_and_for_one_are_served_in_the_order_in_which_they_came(
    redis_url: str, small: PoolSpec, ports: PortAllocator
) -> None:
    held = [ports.claim("email", org="first", instance=number) for number in range(2)]
    assert order_of_service(ports, redis_url, small, held, [two_ports, one_port] * 4) == list(range(8))


def test_those_whom_a_limit_holds_back_are_served_in_order_over_all_hosts(
    redis_url: str, ports: PortAllocator, pool: PoolSpec
) -> None:
    ports.apply_pool(replace(pool, max_per_org=1))
    held = ports.claim("email", org="o")
    served: list[int] = []

    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            hosts = [
                await stack.enter_async_context(
                    AsyncPortAllocator.from_url(redis_url, pool=pool.name, host=f"web-{number}")
                )
                for number in range(2, 5)
            ]

            async def wait(number: int) -> None:
                line = hosts[number % 3]
                lease = await line.claim("email", org="o", instance=number, wait=30)
                served.append(number)
                await line.release(lease)

            tasks = []
            for number in range(1, 10):
                tasks.append(asyncio.create_task(wait(number)))
                await asyncio.to_thread(until, lambda count=number: held_back(ports, pool) == count)
            await asyncio.to_thread(ports.release, held)
            await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert served == list(range(1, 10))


def held_back(ports: PortAllocator, pool: PoolSpec) -> int:
    return int(client_of(ports.store).zcard(f"alloc:{{{pool.name}}}:held:org:o"))  # no other way
