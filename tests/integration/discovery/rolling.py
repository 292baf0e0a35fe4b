"""A rolling restart of leased workers under load, behind each proxy and each transport: answers and failures.

`python tests/integration/discovery/rolling.py` prints the table; `--requests` and `--runs` say how much is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]

import httpx
from proxies import EnvoyFile, Load, Proxy, TraefikFile, get
from servers import Server, wait_until

from allocator import AsyncPluginTransport, PluginTransport, PoolSpec, PortAllocator

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
SERVICE = "http://email.org-123.plugin/health"
WORKERS = 3
PROXIES = ("nginx", "haproxy", "traefik", "envoy")
TRANSPORTS = ("PluginTransport", "AsyncPluginTransport")
WORKER = """
import http.server, signal, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *words): pass
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64
server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(0.02)
server.server_close()
"""


@functools.cache
def has_drain_delay() -> bool:
    """Return whether `run` lets go of a worker before it stops it."""
    arguments = [sys.executable, "-m", "allocator", "run", "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return (
        "--drain-delay" in subprocess.run(arguments, capture_output=True, text=True, env=environment, check=True).stdout
    )


class Fleet:
    """Three workers under `allocator run`, and an export that follows them.

    Args:
        url: The Redis.
        pool: The pool, which is there.
        directory: Where files are made.
        delay_s: How long a worker drains, and how long the next one waits: all readers have seen it by then.
    """

    def __init__(self, url: str, pool: str, directory: Path, *, delay_s: float = 2) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        self._environment = kept | {
            "XDG_STATE_HOME": str(directory / "state"),
            "PYTHONPATH": str(ROOT),
            "ALLOCATOR_REDIS_URL": url,
            "ALLOCATOR_POOL": pool,
            "ALLOCATOR_HOST": "web-1",
            "ALLOCATOR_ADVERTISE": "127.0.0.1",
        }
        self.delay_s = delay_s
        self._url, self._pool, self._running = url, pool, list[subprocess.Popen[bytes]]()
        self._ports = PortAllocator.from_url(url, pool=pool, host="web-1")
        self.directory = directory
        self.worker = directory / "worker.py"
        self.worker.write_text(WORKER)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "allocator", *arguments]
        process = subprocess.Popen(command, env=self._environment, stderr=subprocess.DEVNULL)
        self._running.append(process)
        return process

    def run(self, number: int) -> subprocess.Popen[bytes]:
        delay = ["--drain-delay", f"{self.delay_s}s"] if has_drain_delay() else []
        command = ["--", sys.executable, str(self.worker), "{port}"]
        return self.start("run", "email", "--org", "org-123", "--instance", str(number), *delay, *command)

    def ready(self) -> set[int]:
        return {one.worker.instance for one in self._ports.endpoints("email", org="org-123")}

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.terminate()
        for process in self._running:
            process.wait(30)
        self._ports.close()

    @contextlib.contextmanager
    def load(self, way: str) -> Iterator[Load | AsyncLoad]:
        """Send requests by one way until the block ends."""
        with contextlib.ExitStack() as stack:
            if way == "PluginTransport":
                transport = PluginTransport(self._url, pool=self._pool)
                client = stack.enter_context(httpx.Client(transport=transport, trust_env=False, timeout=20))
                yield stack.enter_context(Load(lambda: client.get(SERVICE).status_code))
            elif way == "AsyncPluginTransport":
                yield stack.enter_context(AsyncLoad(self._url, self._pool))
            else:
                port = stack.enter_context(self._proxy(way))
                yield stack.enter_context(Load(lambda: get(port)))

    @contextlib.contextmanager
    def _proxy(self, way: str) -> Iterator[int]:
        file = (
            self.directory / "exported" / {"traefik": "workers.yml", "envoy": "workers.json"}.get(way, "workers.conf")
        )
        file.parent.mkdir(exist_ok=True)
        assert self.start("export", way, "--out", str(file), "--always", "org-123/email").wait(60) == 0
        exporting = ["export", way, "--watch", "--out", str(file)]
        if way in {"traefik", "envoy"}:
            with (TraefikFile if way == "traefik" else EnvoyFile)(self.directory, file) as proxy:
                self.start(*exporting)
                wait_until(lambda: get(proxy.port) == 200, f"{way} does not answer: {proxy.printed()}")
                yield proxy.port
        else:
            with Proxy(way, self.directory, file) as proxy:
                self.start(*exporting, "--exec", proxy.reload)
                yield proxy.port


class AsyncLoad:
    """Four tasks that send one request after the other through `AsyncPluginTransport`."""

    def __init__(self, url: str, pool: str) -> None:
        self.answered, self.failures = 0, list[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send(url, pool)))

    def __enter__(self) -> AsyncLoad:  # noqa: PYI034  # it has no subclass
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _send(self, url: str, pool: str) -> None:
        transport = AsyncPluginTransport(url, pool=pool)
        async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=20) as client:
            await asyncio.gather(*(self._one_after_the_other(client) for _ in range(4)))

    async def _one_after_the_other(self, client: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            await asyncio.sleep(0.005)
            try:
                status = (await client.get(SERVICE)).status_code
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
                continue
            if status == 200:
                self.answered += 1
            else:
                self.failures.append(str(status))


def rolling_restart(fleet: Fleet, way: str, *, requests: int = 0) -> tuple[int, list[str]]:
    """Restart the workers one after the other under load; return how many requests were answered, and what failed.

    Args:
        fleet: The workers.
        way: A proxy or a transport.
        requests: Restart them again until so many were answered; 0 to restart each once.
    """
    assert fleet.start("host", "register").wait(60) == 0
    workers = [fleet.run(number) for number in range(WORKERS)]
    wait_until(lambda: len(fleet.ready()) == WORKERS, "the workers did not become ready", 60)
    with fleet.load(way) as load:
        wait_until(lambda: load.answered > 50, f"nothing is answered: {load.failures[:3]}")
        while True:
            for number in range(WORKERS):
                restart(fleet, workers, number)
            if load.answered + len(load.failures) >= requests:
                break
        answered = load.answered
        wait_until(lambda: load.answered > answered + 50, "nothing is answered after the restart")
    return load.answered, load.failures


def restart(fleet: Fleet, workers: list[subprocess.Popen[bytes]], number: int) -> None:
    """Stop one worker and start it again; the next one's turn comes when every reader has had time to see it."""
    workers[number].terminate()
    workers[number].wait(60)
    wait_until(lambda: number not in fleet.ready(), "the worker did not end", 60)
    workers[number] = fleet.run(number)
    wait_until(lambda: number in fleet.ready(), "the new worker did not become ready", 60)
    if has_drain_delay():
        time.sleep(fleet.delay_s)


def main() -> None:
    parser = argparse.ArgumentParser(description="A rolling restart behind each proxy and each transport.")
    parser.add_argument("--requests", type=int, default=15_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("ways", nargs="*", default=[*PROXIES, *TRANSPORTS])
    asked = parser.parse_args()
    print("| way | run | requests | failed |\n|---|---|---|---|")
    for way in asked.ways:
        for run in range(1, asked.runs + 1):
            with tempfile.TemporaryDirectory() as directory, Server() as server:
                spec = PoolSpec(name="rolling", first=14_500, last=14_540, cooldown_ms=0)
                with PortAllocator.from_url(server.ready().url, pool=spec.name, host="web-1") as ports:
                    ports.apply_pool(spec)
                fleet = Fleet(server.url, spec.name, Path(directory))
                try:
                    answered, failures = rolling_restart(fleet, way, requests=asked.requests)
                finally:
                    fleet.close()
            print(f"| {way} | {run} | {answered + len(failures):,} | {len(failures)} |", *failures[:2], flush=True)


if __name__ == "__main__":
    main()
