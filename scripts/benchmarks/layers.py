"""Where the time of a claim and of a release goes, from the call of `PortAllocator` to its return.

The layers are measured where they meet: the kernel's answers and the store's calls by a clock around each, the scripts
by the server, the driver as what its PING takes more than the same bytes over a bare socket. What is left is this
package's own: checking arguments, making the request, reading the reply into a `Lease`.
"""

from __future__ import annotations

import socket
import statistics
import time
from typing import TYPE_CHECKING, Any

from allocator import PortAllocator
from allocator.kernel.answers import Answers
from allocator.operations.steps import ProvePorts, ReadListeners, Step
from benchmarks.leases import RETURNING, SMALL, Bench
from benchmarks.servers import server
from benchmarks.timing import Spread, seconds_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.protocol.wire import ScriptCall

HOST = "bench"
PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"+PONG\r\n"


class Watch:
    """The microseconds that each layer took in one operation."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def around(self, layer: str, action: Callable[[], Any]) -> Any:
        """Carry out an action, and count its time for a layer."""
        began = time.perf_counter()
        try:
            return action()
        finally:
            self.spent[layer] = self.spent.get(layer, 0.0) + (time.perf_counter() - began) * 1e6


class WatchedKernel(Answers):
    """This host's kernel, with a clock."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def answer(self, step: Step) -> object:
        """Return what the kernel answers."""
        if not isinstance(step, ReadListeners | ProvePorts):
            return super().answer(step)
        layer = "listeners" if isinstance(step, ReadListeners) else "proof"
        return self.watch.around(layer, lambda: super(WatchedKernel, self).answer(step))


class Watched:
    """An allocator with clocks between its layers."""

    def __init__(self, url: str) -> None:
        self.bench = Bench(url)
        self.bench.reset()
        self.watch = Watch()
        self.allocator = PortAllocator.from_url(url, pool=SMALL.name, host=HOST)
        self.allocator.session.answers = WatchedKernel(self.watch)
        call = self.allocator.store.call

        def watched(step: ScriptCall) -> Any:
            return self.watch.around("store", lambda: call(step))

        self.allocator.store.call = watched  # type: ignore[method-assign]  # a clock around it
        self.pair(0)

    def pair(self, number: int) -> tuple[dict[str, float], dict[str, float]]:
        """Claim and release; return the microseconds of each whole and of its layers."""
        self.watch.spent = {}
        lease = self.watch.around("whole", lambda: self.allocator.claim("email", org=f"org-{number % RETURNING}"))
        claimed, self.watch.spent = self.watch.spent, {}
        self.watch.around("whole", lambda: self.allocator.release(lease))
        return claimed, self.watch.spent


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return the layers of a claim and a release, in microseconds: medians over all of them, taking turns with PING."""
    rounds, pairs = (4, 50) if quick else (40, 100)
    bare_us: list[float] = []
    driver_us: list[float] = []
    claims: list[dict[str, float]] = []
    releases: list[dict[str, float]] = []
    with server(binary) as address:
        watched, bare = Watched(address["unix"]), _bare_ping(address["path"])
        for _ in range(rounds):
            bare_us += [seconds_for(bare) * 1e6 for _ in range(pairs)]
            driver_us += [seconds_for(watched.bench.redis.ping) * 1e6 for _ in range(pairs)]
            for number in range(pairs):
                claim, release = watched.pair(number)
                claims.append(claim)
                releases.append(release)
        scripts = _script_us(watched, 4 * pairs)
    trip = statistics.median(bare_us)
    return {
        "trip_us": Spread.of(bare_us),
        "driver_us": Spread.of(driver_us),
        "claim": _layers(claims, scripts["claim"], trip),
        "release": _layers(releases, scripts["release"], trip),
    }


def _bare_ping(path: str) -> Callable[[], bytes]:
    line = socket.socket(socket.AF_UNIX)
    line.connect(path)

    def ping() -> bytes:
        line.sendall(PING)
        return line.recv(len(PONG))

    return ping


def _script_us(watched: Watched, pairs: int) -> dict[str, float]:
    """Return the server's own time for each script: the median of what it shows after each."""
    spent: dict[str, list[float]] = {"claim": [], "release": []}
    allocator, redis = watched.allocator, watched.bench.redis
    for number in range(pairs):
        redis.config_resetstat()
        lease = allocator.claim("email", org=f"org-{number % RETURNING}")
        between = redis.info("commandstats")["cmdstat_evalsha"]["usec"]
        allocator.release(lease)
        spent["claim"].append(between)
        spent["release"].append(redis.info("commandstats")["cmdstat_evalsha"]["usec"] - between)
    return {name: statistics.median(each) for name, each in spent.items()}


def _layers(operations: list[dict[str, float]], script_us: float, trip_us: float) -> dict[str, float]:
    def median(layer: str) -> float:
        return statistics.median(one.get(layer, 0.0) for one in operations)

    python = statistics.median(
        one["whole"] - one["store"] - one.get("listeners", 0.0) - one.get("proof", 0.0) for one in operations
    )
    return {
        "whole": median("whole"),
        "script": script_us,
        "trip": trip_us,
        "driver": max(0.0, median("store") - script_us - trip_us),
        "listeners": median("listeners"),
        "proof": median("proof"),
        "python": python,
    }


DONE = {
    "script": (
        "the script, in the server",
        """\
one script decides and writes; a port has a time, so that nothing is searched and nothing swept; constants are put in
the place of their names; the rules are one field; what few pools have is read only by them""",
    ),
    "trip": (
        "the way to the server and back, a bare socket",
        "one round trip each, and none for the pool's rules, which the client keeps and the script checks",
    ),
    "driver": (
        "redis-py with hiredis: packing, reading, errors, timeouts",
        """\
a connection stays with the store between calls in place of going through the driver's pool, which took 25 µs a call
more; hiredis gets the arguments at once; no retry policy is entered where a call succeeds""",
    ),
    "listeners": (
        "which ports strangers listen on",
        "a netlink dump in place of `/proc/net/tcp` (7 ms here), of both families in one walk (it was two)",
    ),
    "proof": ("the bind that proves the port", "one socket of both families in place of one for each"),
    "python": (
        "this package: arguments, request, `Lease`",
        """\
frozen classes with slots, no Pydantic, no logging, generators in place of callbacks; the worker's name is not read
again from the reply""",
    ),
}
"""What each layer is, and what was done about it."""


def table(found: dict[str, Any]) -> list[str]:
    """Return the table of the layers, in Markdown."""
    claim, release = found["claim"], found["release"]
    lines = [
        "| layer | claim, µs | of it | release, µs | of it | what was done about it |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for layer, (what, done) in DONE.items():
        parts = " | ".join(f"{one[layer]:.0f} | {one[layer] / one['whole']:.0%}" for one in (claim, release))
        lines.append(f"| {what} | {parts} | {' '.join(done.split())} |")
    return [*lines, f"| **whole** | **{claim['whole']:.0f}** | | **{release['whole']:.0f}** | | |"]
