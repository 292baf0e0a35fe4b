"""A pair of bare scripts over each way to one server, and `PortAllocator` with its kernel checks beside them.

The bare pair takes a key (`SET NX PX`) and gives it back by compare-and-delete: what any lock needs. All ways take
turns over one Unix socket.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
from typing import TYPE_CHECKING, Any

import hiredis
import redis
import redis.asyncio

from allocator import AsyncPortAllocator, PortAllocator
from allocator.model.redis_urls import parse_store_url
from allocator.store.direct import ConnectionOptions, ConnectionPool, new_reader
from allocator.store.direct_aio import AsyncConnectionPool
from benchmarks.leases import BARE_GIVE, BARE_TAKE, RETURNING, SMALL, Bench
from benchmarks.servers import server
from benchmarks.table import Row, at_least, plain
from benchmarks.timing import Spread, ratios, seconds_for, take_turns
from benchmarks.wire import Template, end_call, port_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TAKE, GIVE = (hashlib.sha1(one.encode(), usedforsecurity=False).hexdigest() for one in (BARE_TAKE, BARE_GIVE))
HOST = "bench"

WAYS = {
    "socket": "bare pair, a socket with hiredis' packer and reader",
    "ours": "bare pair, `ConnectionPool`",
    "scripts": "our two scripts, `ConnectionPool`",
    "redis_py": "bare pair, redis-py's client",
    "ours_async": "bare pair, `AsyncConnectionPool`",
    "redis_py_async": "bare pair, `redis.asyncio`'s client",
    "allocator": "`PortAllocator` claim + release, with kernel checks",
    "allocator_async": "`AsyncPortAllocator` claim + release, with kernel checks",
}


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return the microseconds of a pair each way, and their ratios round by round."""
    rounds, pairs = (12, 50) if quick else (60, 100)
    with server(binary) as address, asyncio.Runner() as runner:
        bench = Bench(address["unix"])
        bench.reset()
        bench.bare_pairs(1)
        cases = _cases(address, bench, runner)
        times = take_turns({name: _batch(case, pairs) for name, case in cases.items()}, rounds)
        runner.run(asyncio.sleep(0.01))
    found: dict[str, Any] = {f"{name}_us": Spread.of([s / pairs * 1e6 for s in spent]) for name, spent in times.items()}
    return found | {
        "allocator": ratios(times["redis_py"], times["allocator"]),
        "allocator_async": ratios(times["redis_py_async"], times["allocator_async"]),
        "scripts": ratios(times["ours"], times["scripts"]),
        "ours": ratios(times["redis_py"], times["ours"]),
        "ours_async": ratios(times["redis_py_async"], times["ours_async"]),
    }


def _batch(case: Callable[[int], Any], pairs: int) -> Callable[[], float]:
    return lambda: seconds_for(lambda: case(pairs))


def _cases(address: dict[str, str], bench: Bench, runner: asyncio.Runner) -> dict[str, Callable[[int], Any]]:
    options = ConnectionOptions(parse_store_url(address["unix"]), 5.0)
    pool, async_pool = ConnectionPool(options), AsyncConnectionPool(options)
    client = redis.asyncio.Redis(unix_socket_path=address["path"], protocol=2)
    ports = PortAllocator.from_url(address["unix"], pool=SMALL.name, host=HOST)
    async_ports = AsyncPortAllocator.from_url(address["unix"], pool=SMALL.name, host=HOST)

    def leases(count: int) -> None:
        for number in range(count):
            ports.release(ports.claim("email", org=f"org-{number % RETURNING}"))

    async def async_leases(count: int) -> None:
        for number in range(count):
            await async_ports.release(await async_ports.claim("email", org=f"org-{number % RETURNING}"))

    return {
        "socket": _pairs(_over_a_socket(address["path"])),
        "ours": _pairs(pool.execute),
        "scripts": lambda count: _script_pairs(pool.execute, bench, count),
        "redis_py": _pairs(bench.redis.execute_command),
        "ours_async": lambda count: runner.run(_async_pairs(async_pool.execute, count)),
        "redis_py_async": lambda count: runner.run(_async_pairs(client.execute_command, count)),
        "allocator": leases,
        "allocator_async": lambda count: runner.run(async_leases(count)),
    }


def _pairs(execute: Callable[..., Any]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for at in range(count):
            key, token = f"port:{at % 44}", secrets.token_hex(16)
            execute("EVALSHA", TAKE, 1, key, token, 30_000)
            execute("EVALSHA", GIVE, 1, key, token)

    return run


def _script_pairs(execute: Callable[..., Any], bench: Bench, count: int) -> None:
    take = Template(bench.claim_call(SMALL, "WORKER", "TOKEN"), "WORKER", "TOKEN")
    give = Template(end_call(SMALL.name, HOST, 65_536, "TOKEN"), 65_536, "TOKEN")
    for at in range(count):
        token = secrets.token_hex(16)
        reply = execute("EVALSHA", *take.filled(f"org-{at % RETURNING}/email#0", token))
        execute("EVALSHA", *give.filled(port_of(reply), token))


async def _async_pairs(execute: Callable[..., Awaitable[Any]], count: int) -> None:
    for at in range(count):
        key, token = f"port:{at % 44}", secrets.token_hex(16)
        await execute("EVALSHA", TAKE, 1, key, token, 30_000)
        await execute("EVALSHA", GIVE, 1, key, token)


def _over_a_socket(path: str) -> Callable[..., Any]:
    opened, reader = socket.socket(socket.AF_UNIX), new_reader()
    opened.connect(path)

    def execute(*arguments: Any) -> Any:
        opened.sendall(hiredis.pack_command(arguments))
        reader.feed(opened.recv(65_536))
        return reader.gets()

    return execute


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines of the table."""
    lines = [plain(what, found[f"{way}_us"], " µs") for way, what in WAYS.items()]
    return [
        *lines,
        at_least("our two scripts: rate beside a bare pair over the same `ConnectionPool`", found["scripts"], 0.55),
        at_least("`PortAllocator` claim + release: rate beside redis-py's bare pair", found["allocator"], 0.9),
        at_least("`AsyncPortAllocator`: rate beside `redis.asyncio`'s bare pair", found["allocator_async"], 1.0),
    ]
