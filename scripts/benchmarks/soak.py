"""What grows: an hour of a fleet's work at a hundred times its pace, with every program that stays watched all along.

A supervisor whose workers are killed, an agent with leases bound to processes, `serve` with a page that is open, a
reconciler on SQLite, hosts that drain and come back, and claims, renewals and releases of a whole fleet. What each has
in the end is held against what it had when it had warmed up.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import redis

from allocator.client.lease_files import LeaseFiles
from allocator.client.session import make_session
from allocator.model.errors import AllocatorError
from allocator.model.states import LeaseState
from allocator.model.values import replace
from allocator.operations import hosts, listing
from benchmarks.supervisor import HEALTHY, rss_mib, site, until
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from allocator import PortAllocator
    from benchmarks.supervisor import Setup

SECONDS, QUICK_SECONDS = 3_600.0, 240.0
WARM_PART = 0.2
"""Memory and keys grow until everything has happened once: the first part of a run is not held against its end."""
SAMPLES = 60
HOSTS, WORKERS, BOUND = 30, 10, 50
PAUSE_S = 0.01
"""Between two acts of the fleet: about a hundred a second, where a fleet of this size makes one."""
DRAIN_EVERY_S, KILL_EVERY_S, PAGE_S = 2.0, 3.0, 20.0
MEMORY_PART, MEMORY_MIB, KEYS_PART = 0.05, 1.0, 0.05
"""What still counts as no growth: a part, and for memory one MiB at least, which allocators round to."""


@dataclass
class Watched:
    """A program that stays, and what was seen of it.

    Attributes:
        read: What to read of it, by name.
        seen: The samples, by name.
    """

    name: str
    read: Callable[[], dict[str, float]]
    seen: dict[str, list[float]] = field(default_factory=dict)

    def sample(self) -> None:
        """Read it once more."""
        for name, value in self.read().items():
            self.seen.setdefault(name, []).append(value)

    def growth(self) -> dict[str, tuple[float, float]]:
        """Return by name what it had when it was warm and in the end: medians of a fifth of the samples each."""
        found = {}
        for name, values in self.seen.items():
            warm, part = int(len(values) * WARM_PART), max(1, len(values) // 5)
            found[name] = statistics.median(values[warm : warm + part]), statistics.median(values[-part:])
        return found


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return for each program what it had when it was warm and what it has in the end."""
    seconds = QUICK_SECONDS if quick else SECONDS
    with site(binary) as here, contextlib.ExitStack() as stack:
        watched = [_server(here), *_programs(here, stack)]
        acts = stack.enter_context(_fleet(here))
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            for one in watched:
                one.sample()
            time.sleep(seconds / SAMPLES)
        return {"seconds": seconds, "acts": acts[0], "programs": {one.name: one.growth() for one in watched}}


def rows(found: dict[str, Any]) -> list[Row]:
    """Return a row for each thing of each program."""
    made = [Row("claims, renewals and releases", f"{found['acts']:,} in {found['seconds']:.0f} s", "")]
    for program, things in found["programs"].items():
        for thing, (warm, end) in things.items():
            most = warm * (1 + (KEYS_PART if thing == "keys" else MEMORY_PART))
            most = warm if thing == "descriptors" else max(most, warm + MEMORY_MIB) if "MiB" in thing else most
            shown = f"{warm:,.1f} → {end:,.1f}" if "MiB" in thing else f"{warm:,.0f} → {end:,.0f}"
            made.append(Row(f"{program}: {thing}", shown, "", f"≤ {most:,.1f}", end <= most))
    return made


def _server(here: Setup) -> Watched:
    client = redis.Redis.from_url(here.environment["ALLOCATOR_REDIS_URL"])

    def read() -> dict[str, float]:
        memory = client.info("memory")
        return {"used memory, MiB": memory["used_memory"] / 2**20, "keys": client.dbsize()}

    return Watched("Redis", read)


def _programs(here: Setup, stack: contextlib.ExitStack) -> Iterator[Watched]:
    supervisor = here.run("--health", "/", "--replicas", str(WORKERS), worker=HEALTHY)
    until(lambda: sum(one.state == LeaseState.READY for one in here.ports.leases()) == WORKERS)
    files = LeaseFiles(Path(here.environment["XDG_STATE_HOME"]) / "allocator/leases")
    for number in range(BOUND):
        process = stack.enter_context(subprocess.Popen(["sleep", "86400"]))
        stack.callback(process.kill)
        files.save(here.ports.claim("stripe", org=f"bound-{number}", pid=process.pid))
    here.start("db", "upgrade").wait()
    agent = here.start("agent")
    reconciler = here.start("reconcile", "--watch")
    arguments = [sys.executable, "-m", "allocator", "serve", "--listen", "127.0.0.1:0", "--rate", "0"]
    serve = subprocess.Popen(arguments, env=here.environment, stderr=subprocess.PIPE, text=True)
    assert serve.stderr is not None
    url = next(match[1] for line in serve.stderr if (match := re.search(r" on (http://\S+);", line)))
    stack.enter_context(_thread(lambda _: _drain(serve.stderr)))
    stack.enter_context(_thread(lambda ended: _look(url, ended)))
    stack.enter_context(_thread(lambda ended: _kill_workers(here, ended)))
    for process in (serve, agent, reconciler, supervisor):
        stack.callback(process.wait)
        stack.callback(process.terminate)
    named = {"`run`": supervisor, "`agent`": agent, "`serve`": serve, "`reconcile --watch`": reconciler}
    return (_program(name, process.pid) for name, process in named.items())


def _program(name: str, pid: int) -> Watched:
    def read() -> dict[str, float]:
        return {"memory, MiB": rss_mib(pid), "descriptors": len([*Path(f"/proc/{pid}/fd").iterdir()])}

    return Watched(name, read)


@contextlib.contextmanager
def _thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _drain(stream: Any) -> None:
    for _ in stream:
        pass


def _look(url: str, ended: threading.Event) -> None:
    """Be a page that is open, and opened again at times: follow the events, and read what it shows once a second."""
    with httpx.Client(base_url=url, timeout=60) as http:
        while not ended.is_set():
            with contextlib.suppress(httpx.HTTPError), http.stream("GET", "/v1/events") as events:
                closes, frames = time.monotonic() + PAGE_S, events.iter_raw()
                while time.monotonic() < closes and not ended.is_set():
                    next(frames, b"")
                    for path in ("/v1/fleet", "/v1/problems", "/v1/services"):
                        http.get(path)
                    ended.wait(1.0)


def _kill_workers(here: Setup, ended: threading.Event) -> None:
    """Kill one worker of the supervisor after the other."""
    at = 0
    while not ended.wait(KILL_EVERY_S):
        pids = sorted(one.pid for one in here.ports.leases() if one.plugin == "email" and one.pid)
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[at % len(pids)], signal.SIGKILL)
        at += 1


@contextlib.contextmanager
def _fleet(here: Setup) -> Iterator[list[int]]:
    """Work as a fleet, in a thread; gives how many acts it made."""
    acts = [0]

    def work(ended: threading.Event) -> None:
        rng, held = random.Random(7), {}
        callers = [_on_host(here.ports, f"web-{number}") for number in range(HOSTS)]
        drained, due = None, time.monotonic() + DRAIN_EVERY_S
        while not ended.wait(PAUSE_S):
            acts[0] += 1
            caller, number = callers[(at := rng.randrange(HOSTS))], rng.randrange(20)
            with contextlib.suppress(AllocatorError):
                if (at, number) not in held:
                    held[at, number] = caller.claim("email", org=f"org-{at}", instance=number)
                elif rng.random() < 0.5:
                    state = rng.choice([LeaseState.READY, LeaseState.DEGRADED])
                    (held[at, number],) = caller.renew(replace(held[at, number], state=state), rewrite=True)
                else:
                    caller.release(held.pop((at, number)))
                if time.monotonic() > due:
                    pool, due = caller.pool().name, time.monotonic() + DRAIN_EVERY_S
                    if drained:
                        caller.run(listing.cordon(pool, drained, on=False))
                    drained = None if drained else f"web-{at}"
                    if drained:
                        caller.run(hosts.drain(pool, drained))

    with _thread(work):
        yield acts


def _on_host(ports: PortAllocator, host: str) -> PortAllocator:
    session = make_session(ports.pool().name, "soak", "keep")
    return type(ports)(ports.store, session.as_host(host, f"{host} boot -"))
