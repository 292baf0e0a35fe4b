"""The HTTP API under load: claims at a fixed rate beside a thousand listeners to its events.

The server is the command, a process of its own; listeners and claims share another. Each claim is timed from the moment
at which it was due, not from when it could be sent, so that a stall is not left out of the figures ("coordinated
omission", G. Tene, 2015).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.servers import server
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

RATE, LISTENERS, SECONDS = 200, 1_000, 20
TARGET_MS = 50
FILES, HONEST, HONEST_EVERY_S, HONEST_TARGET_MS = 1_024, 100, 0.15, 1_000
"""Descriptors of a besieged server, and the requests that it is sent in full, each over a connection of its own.

They take longer than the head of a request may."""
LOG_TARGET_MB, END_TARGET_S = 1, 15
SIEGES = {"1,100 half-sent": (1_100, b""), "1,000 slow": (1_000, b"x")}
"""Requests that are held, each made again when the server ends it: how many, and what each sends every 0.2 s."""


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return the latencies of claims, and what the listeners heard."""
    listeners, seconds = (100, 3) if quick else (LISTENERS, SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * listeners + 512)), hard))
    with server(binary) as address:
        with _served(address["unix"]) as (_, port, _log):
            found = asyncio.run(_load(port, listeners, seconds))
        sieges = {}
        for name, (held, drip) in SIEGES.items():
            with _served(address["unix"], "sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh") as (process, port, log):
                sieges[name] = asyncio.run(_siege(port, held // 10 if quick else held, drip, process, log))
    return found | {"sieges": sieges}


@contextlib.contextmanager
def _served(redis_url: str, *before: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """Give a server with its port and its log."""
    with tempfile.TemporaryDirectory(prefix="bench-api-") as directory:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        environment |= {"XDG_STATE_HOME": directory, "ALLOCATOR_REDIS_URL": redis_url}
        arguments = [*before, sys.executable, "-m", "allocator", "serve", "--listen", "127.0.0.1:0", "--rate", "0"]
        log = Path(directory) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(arguments, env=environment, stderr=file)
        try:
            while not (found := re.search(r":(\d+);", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            yield process, int(found[1]), log
        finally:
            process.terminate()
            process.wait()


async def _load(port: int, listeners: int, seconds: int) -> dict[str, Any]:
    gc.disable()  # the pauses to be measured are the server's
    heard, begun = [0], asyncio.Semaphore(0)
    tasks = [asyncio.create_task(_listen(port, heard, begun)) for _ in range(listeners)]
    for _ in tasks:
        await begun.acquire()
    connections: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
    latencies: list[float] = []
    began = time.perf_counter()
    jobs = []
    for number in range(RATE * seconds):
        due = began + number / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        jobs.append(asyncio.create_task(_pair(port, connections, number, due, latencies)))
    await asyncio.gather(*jobs)
    took = time.perf_counter() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    gc.enable()
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return {
        "listeners": listeners,
        "rate": len(latencies) / took,
        "median_ms": cuts[49] * 1_000,
        "p99_ms": cuts[98] * 1_000,
        "longest_ms": max(latencies) * 1_000,
        "chunks_heard_a_second": heard[0] / took,
    }


async def _siege(port: int, held: int, drip: bytes, process: subprocess.Popen[bytes], log: Path) -> dict[str, float]:
    """Time honest requests while others are held, then how long the server takes to end under all of them."""
    begun = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(_hold(port, begun, drip)) for _ in range(held)]
    for _ in tasks:
        await begun.acquire()
    took = []
    for _ in range(HONEST):
        await asyncio.sleep(HONEST_EVERY_S)
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        status, _, body = await _ask(reader, writer, "GET", "/v1/pools", b"")
        took.append((time.perf_counter() - began) * 1_000)
        assert status == 200, body
        writer.close()
    began = time.perf_counter()
    process.terminate()
    await asyncio.to_thread(process.wait)
    end_s = time.perf_counter() - began
    written = await asyncio.to_thread(log.stat)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "median_ms": statistics.median(took),
        "longest_ms": max(took),
        "log_mb": written.st_size / 1_000_000,
        "end_s": end_s,
    }


async def _hold(port: int, begun: asyncio.Semaphore, drip: bytes) -> None:
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"POST /v1/leases HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Ty")
                begun.release()
                while drip and not reader.at_eof():
                    writer.write(drip)
                    await writer.drain()
                    await asyncio.sleep(0.2)
                await reader.read()
            finally:
                writer.close()
        await asyncio.sleep(0.2)


async def _listen(port: int, heard: list[int], begun: asyncio.Semaphore) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    try:
        await reader.readuntil(b"portlease")
        begun.release()
        while await reader.read(262_144):
            heard[0] += 1
    finally:
        writer.close()


async def _pair(port: int, connections: Any, number: int, due: float, latencies: list[float]) -> None:
    if connections.empty():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    else:
        reader, writer = connections.get_nowait()
    fields = {"plugin": "email", "org": f"org-{number}", "host": f"host-{number % 40}"}
    status, headers, body = await _ask(reader, writer, "POST", "/v1/leases", json.dumps(fields).encode())
    latencies.append(time.perf_counter() - due)
    assert status == 201, body
    lease = json.loads(body)
    proof = f"Allocator-Token: {headers['allocator-token']}\r\n"
    status, _, body = await _ask(reader, writer, "DELETE", f"/v1/leases/{lease['host']}/{lease['port']}", b"", proof)
    assert status == 200, body
    connections.put_nowait((reader, writer))


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: bytes, more: str = ""
) -> tuple[int, dict[str, str], bytes]:
    kind = "" if method == "GET" else "Content-Type: application/json\r\n"
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}{more}Content-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:]) if name}
    return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the rows of the table."""
    beside = f"{RATE} claims/s over HTTP beside {found['listeners']:,} event streams"
    return [
        Row(f"{beside}: median", f"{found['median_ms']:.1f} ms", ""),
        Row(f"{beside}: 99 %", f"{found['p99_ms']:.1f} ms", "", f"≤ {TARGET_MS} ms", found["p99_ms"] <= TARGET_MS),
        Row(f"{beside}: rate", f"{found['rate']:.0f} a second", "", f"≥ {RATE - 5}", found["rate"] >= RATE - 5),
        *(row for name, siege in found["sieges"].items() for row in _siege_rows(name, siege)),
    ]


def _siege_rows(name: str, siege: dict[str, float]) -> list[Row]:
    longest, log_mb, end_s = siege["longest_ms"], siege["log_mb"], siege["end_s"]
    honest = f"`serve` with {FILES:,} descriptors and {name} requests"
    return [
        Row(f"{honest}: an honest one, median", f"{siege['median_ms']:.0f} ms", ""),
        Row(f"{honest}: longest", f"{longest:.0f} ms", "", f"≤ {HONEST_TARGET_MS} ms", longest <= HONEST_TARGET_MS),
        Row(f"{honest}: log", f"{log_mb:.3f} MB", "", f"≤ {LOG_TARGET_MB} MB", log_mb <= LOG_TARGET_MB),
        Row(f"{honest}: from SIGTERM to its end", f"{end_s:.1f} s", "", f"≤ {END_TARGET_S} s", end_s <= END_TARGET_S),
    ]
