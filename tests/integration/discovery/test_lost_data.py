"""The promise: no good address goes because Redis lost its data. Ten workers, each way to their addresses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx
import pytest
from api_server import served
from servers import Server, wait_until
from workers import Worker

from allocator import (
    AsyncPluginTransport,
    AsyncPortAllocator,
    LeaseState,
    PluginTransport,
    PoolSpec,
    PortAllocator,
    Service,
)
from allocator.api.application import create_app
from allocator.discovery.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]
WORKERS = 10
POOL = PoolSpec(name="lost", first=14_700, last=14_790, ttl_ms=6_000, ttl_min_ms=1_000, cooldown_ms=0)
ADDRESS = re.compile(r"127\.0\.1\.\d+")


def lose_by_flushall(server: Server) -> None:
    server.client().flushall()


def lose_by_restart(server: Server) -> None:
    server.crash()
    server.start()
    server.ready()
    assert server.client().dbsize() < WORKERS


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        yield one.ready()


@pytest.fixture
def workers(server: Server) -> Iterator[list[Worker]]:
    """Ten ready workers, each on a host with a loopback address of its own."""
    with contextlib.ExitStack() as stack:
        running = []
        for number in range(WORKERS):
            address = f"127.0.1.{number + 1}"
            allocator = PortAllocator.from_url(server.url, pool=POOL.name, host=f"web-{number}", advertise=address)
            stack.enter_context(allocator)
            if not number:
                allocator.apply_pool(POOL)
            allocator.register()
            running.append(Worker(allocator, instance=number, address=address).ready())
            stack.callback(running[-1].server.server_close)
            stack.callback(running[-1].server.shutdown)
        yield running


@pytest.fixture
def exports(server: Server, tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Every format as `export --watch` keeps it, in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
    environment = kept | {
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PYTHONPATH": str(ROOT),
        "ALLOCATOR_REDIS_URL": server.url,
        "ALLOCATOR_POOL": POOL.name,
    }
    files = {form: tmp_path / f"workers.{form}" for form in FORMATS}
    running = []
    for form, file in files.items():
        arguments = [sys.executable, "-m", "allocator", "export", form, "--watch", "--out", str(file)]
        running.append(subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL))
    yield files
    for process in running:
        process.terminate()
    for process in running:
        process.wait(30)


class Lowest:
    """Asks again and again how many addresses somebody knows, and keeps the lowest number."""

    def __init__(self, ways: dict[str, Callable[[], int]]) -> None:
        self.lowest = dict.fromkeys(ways, WORKERS)
        self.asked = dict.fromkeys(ways, 0)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=way) for way in ways.items()]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str, count: Callable[[], int]) -> None:
        while not self._stop.wait(0.02):
            self.lowest[name] = min(self.lowest[name], count())
            self.asked[name] += 1


def in_file(file: Path) -> int:
    return len(set(ADDRESS.findall(file.read_text()))) if file.exists() else 0


@pytest.mark.parametrize("lose", [lose_by_flushall, lose_by_restart])
def test_never_fewer_than_ten_of_ten_addresses_while_redis_has_lost_its_data(
    lose: Callable[[Server], None], server: Server, workers: list[Worker], exports: dict[str, Path]
) -> None:
    application = create_app(AsyncPortAllocator.from_url(server.url, pool=POOL.name))
    with contextlib.ExitStack() as stack:
        email = stack.enter_context(Service("email", org="org-123", url=server.url, pool=POOL.name))
        transport = PluginTransport(server.url, pool=POOL.name)
        client = stack.enter_context(httpx.Client(transport=transport, trust_env=False))
        api = stack.enter_context(httpx.Client(base_url=stack.enter_context(served(application)), trust_env=False))
        targets: list[int] = []

        def round_of(get: Callable[[], httpx.Response]) -> int:
            """Return how many workers answer ten requests: each in turn."""
            return len({get().text.split()[0] for _ in range(WORKERS)})

        def transported() -> int:
            return round_of(lambda: client.get("http://email.org-123.plugin/"))

        def scraped() -> int:
            answer = api.get("/v1/prometheus/targets")
            if answer.status_code == 503:  # Prometheus keeps what it has
                return targets[-1]
            targets.append(len(set(ADDRESS.findall(answer.text))))
            return targets[-1]

        ways: dict[str, Callable[[], int]] = {form: lambda file=file: in_file(file) for form, file in exports.items()}
        ways |= {"Service": lambda: len(email.endpoints), "PluginTransport": transported, "targets": scraped}
        for name, count in ways.items():
            wait_until(lambda count=count: count() == WORKERS, f"{name} does not know all workers")
        before = {worker.held.lease.fence for worker in workers}
        with Lowest(ways) as lowest, asynchronous(server) as asked:
            lose(server)
            wait_until(
                lambda: not before & {worker.held.lease.fence for worker in workers}, "a lease was not re-asserted"
            )
            seen = dict(lowest.asked)
            until = time.monotonic() + POOL.ttl_ms / 1_000  # whoever is kept without a renewal would go now
            wait_until(
                lambda: time.monotonic() > until and all(lowest.asked[name] > seen[name] + 5 for name in ways),
                "an answer is missing",
            )
        assert lowest.lowest == dict.fromkeys(ways, WORKERS)
        assert asked
        assert set(asked) == {WORKERS}

        workers[0].set(LeaseState.DRAINING)
        workers[1].stop()
        for name, count in ways.items():
            wait_until(lambda count=count: count() == WORKERS - 2, f"{name} keeps workers whose lease ended")


@contextlib.contextmanager
def asynchronous(server: Server) -> Iterator[list[int]]:
    """Ask through `AsyncPluginTransport` until the block ends: how many workers answered each ten requests."""
    answered: list[int] = []
    stop = threading.Event()

    async def ask() -> None:
        transport = AsyncPluginTransport(server.url, pool=POOL.name)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            while not stop.is_set():
                answers = [await client.get("http://email.org-123.plugin/") for _ in range(WORKERS)]
                answered.append(len({answer.text.split()[0] for answer in answers}))

    thread = threading.Thread(target=lambda: asyncio.run(ask()))
    thread.start()
    wait_until(lambda: answered, "nothing is answered")
    try:
        yield answered
    finally:
        stop.set()
        thread.join()


def test_an_export_that_begins_after_the_loss_keeps_the_file_until_every_holder_has_renewed(
    server: Server, workers: list[Worker], tmp_path: Path
) -> None:
    file = tmp_path / "workers.conf"
    settings = {"XDG_STATE_HOME": str(tmp_path / "state"), "ALLOCATOR_REDIS_URL": server.url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "allocator", "export", "nginx", "--pool", POOL.name, "--out", str(file)]

    def export() -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
        assert in_file(file) == WORKERS, done.stderr
        return done

    assert export().returncode == 0
    before = {worker.held.lease.fence for worker in workers}
    lose_by_flushall(server)
    refused = (
        f"Redis is empty or has lost its data, and workers may be missing that renew their leases soon; {file} stays"
    )

    def exported() -> bool:
        done = export()
        assert done.returncode in {0, 75, 78}  # 78: not even the pool is known before the first has renewed
        assert (done.returncode == 75) is (refused in done.stderr)
        return done.returncode == 0

    wait_until(exported, "the file is not written again")
    wait_until(lambda: not before & {worker.held.lease.fence for worker in workers}, "a lease was not re-asserted")
    assert export().returncode == 0


def test_a_worker_that_died_with_the_data_goes_after_one_ttl(server: Server, workers: list[Worker]) -> None:
    with Service("email", org="org-123", url=server.url, pool=POOL.name) as email:
        assert len(email.endpoints) == WORKERS
        dead = workers[3]
        dead.allocator._heartbeats.remove(dead.held)  # as a killed process: nobody renews, nobody releases
        lose_by_flushall(server)
        living = [worker for worker in workers if worker is not dead]

        def are_back() -> bool:
            known = {one.worker: one.fence for one in email.endpoints}
            return all(worker.held.lease.fence == known.get(worker.held.worker) for worker in living)

        before = {worker.held.lease.fence for worker in living}
        wait_until(lambda: not before & {worker.held.lease.fence for worker in living}, "a lease was not re-asserted")
        wait_until(are_back, "the others do not come back")
        wait_until(lambda: len(email.endpoints) == WORKERS - 1, "the dead worker stays")


def test_while_redis_is_away_what_is_known_stays_and_its_age_is_reported(server: Server, workers: list[Worker]) -> None:
    with Service("email", org="org-123", url=server.url, pool=POOL.name) as email:
        assert len(email.endpoints) == WORKERS
        assert email.age_s == 0.0
        server.crash()
        wait_until(lambda: email.age_s > 0.5, "it does not notice")
        assert len(email.endpoints) == WORKERS
        assert "Redis is away, known" in repr(email)
        server.start()
        server.ready()
        wait_until(lambda: email.age_s == 0.0, "it does not come back")
        assert len(email.endpoints) == WORKERS
