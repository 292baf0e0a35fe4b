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
from typing import Any

from benchmarks.servers import server
from benchmarks.table import Row

RATE, LISTENERS, SECONDS = 200, 1_000, 20
TARGET_MS = 50
HELD, HONEST, HONEST_TARGET_MS = 1_100, 30, 1_000
"""Half-sent requests that are held, and requests that are sent in full meanwhile, each over a connection of its own."""


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return the latencies of claims, and what the listeners heard."""
    listeners, seconds = (100, 3) if quick else (LISTENERS, SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * listeners + 512)), hard))
    with server(binary) as place, tempfile.TemporaryDirectory(prefix="bench-api-") as directory:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        environment |= {"XDG_STATE_HOME": directory, "ALLOCATOR_REDIS_URL": place["unix"]}
        words = [sys.executable, "-m", "allocator", "serve", "--listen", "127.0.0.1:0", "--rate", "0"]
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            said = next(found for line in process.stderr if (found := re.search(r":(\d+);", line)))
            port = int(said[1])
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            found = asyncio.run(_load(port, listeners, seconds))
            return found | asyncio.run(_siege(port, 200 if quick else HELD))
        finally:
            process.terminate()
            process.wait()
            drain.wait()


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


async def _siege(port: int, held: int) -> dict[str, Any]:
    """Time honest requests while others are held half-sent, each of which is sent again when the server ends it."""
    begun = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(_hold(port, begun)) for _ in range(held)]
    for _ in tasks:
        await begun.acquire()
    took = []
    for _ in range(HONEST):
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        status, _, body = await _ask(reader, writer, "GET", "/v1/pools", b"")
        took.append((time.perf_counter() - began) * 1_000)
        assert status == 200, body
        writer.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {"held": held, "honest_median_ms": statistics.median(took), "honest_longest_ms": max(took)}


async def _hold(port: int, begun: asyncio.Semaphore) -> None:
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"POST /v1/leases HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Ty")
                begun.release()
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
    words = {"plugin": "email", "org": f"org-{number}", "host": f"host-{number % 40}"}
    status, headers, body = await _ask(reader, writer, "POST", "/v1/leases", json.dumps(words).encode())
    latencies.append(time.perf_counter() - due)
    assert status == 201, body
    lease = json.loads(body)
    proof = f"Allocator-Token: {headers['allocator-token']}\r\n"
    await _ask(reader, writer, "DELETE", f"/v1/leases/{lease['host']}/{lease['port']}", b"", proof)
    connections.put_nowait((reader, writer))


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: bytes, more: str = ""
) -> tuple[int, dict[str, str], bytes]:
    kind = "Content-Type: application/json\r\n" if body else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}{more}Content-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:]) if name}
    return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the rows of the table."""
    honest = f"an honest request beside {found['held']:,} half-sent ones"
    longest = found["honest_longest_ms"]
    beside = f"{RATE} claims/s over HTTP beside {found['listeners']:,} event streams"
    return [
        Row(f"{beside}: median", f"{found['median_ms']:.1f} ms", ""),
        Row(f"{beside}: 99 %", f"{found['p99_ms']:.1f} ms", "", f"≤ {TARGET_MS} ms", found["p99_ms"] <= TARGET_MS),
        Row(f"{beside}: rate", f"{found['rate']:.0f} a second", "", f"≥ {RATE - 5}", found["rate"] >= RATE - 5),
        Row(f"{honest}: median", f"{found['honest_median_ms']:.0f} ms", ""),
        Row(f"{honest}: longest", f"{longest:.0f} ms", "", f"≤ {HONEST_TARGET_MS} ms", longest <= HONEST_TARGET_MS),
    ]
