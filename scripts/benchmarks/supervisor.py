"""What looking after workers costs: `run` and `agent` as the commands that they are, beside workers started directly.

Processor time is the scheduler's own (`/proc/PID/task/*/schedstat`, nanoseconds), for a tick of 10 ms is as much as an
idle supervisor takes in five seconds. Whatever is started here is ended here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allocator import PoolSpec, PortAllocator
from allocator.client.lease_files import LeaseFiles
from allocator.kernel.processes import all_pids, has_variable
from allocator.operations.listing import port_view
from benchmarks.servers import server
from benchmarks.table import Row, at_most
from benchmarks.timing import Spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMAND = (
    sys.executable,
    "-c",
    # The tests install OpenTelemetry's SDK, which redis-py loads wherever it is; who only runs workers has none.
    "import sys; sys.modules['opentelemetry'] = None; from allocator.__main__ import main; main()",
)
FIRST_PORT, HOST, REPLICAS, BOUND = 6_000, "bench", 20, 1_000
SETTLE_S, WATCHED_S = 4.0, 30.0
"""Past the supervisor's own settling; two rounds of an agent's renewals."""

LISTEN = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
HEALTHY = (
    "import http.server, sys\n"
    "class H(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self): self.send_response(200); self.end_headers()\n"
    "    def log_message(self, *_): pass\n"
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()"
)
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN);" + LISTEN
REFUSED = (
    "import pathlib, sys, time\n"
    "print(time.monotonic(), flush=True)\n"
    "marker = pathlib.Path(sys.argv[2])\n"
    "if not marker.exists(): marker.touch(); sys.exit('Address already in use')"
)


@dataclass(frozen=True)
class Setup:
    """Where the commands run: a server, a pool of their own, a state directory."""

    environment: dict[str, str]
    ports: PortAllocator

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command."""
        given: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options
        return subprocess.Popen([*COMMAND, *arguments], env=self.environment, text=True, **given)

    def run(self, *arguments: str, worker: str, also: Sequence[str] = (), **options: Any) -> subprocess.Popen[str]:
        """Start a supervisor of a worker, which is given its port as its first argument."""
        command = [sys.executable, "-S", "-c", worker, "{port}", *also]
        arguments = ("--drain-delay", "0s", *arguments)  # the time for proxies is chosen, not measured
        return self.start("run", "email", "--org", "bench", *arguments, "--", *command, **options)


@contextlib.contextmanager
def site(binary: str | None) -> Iterator[Setup]:
    with server(binary) as found, tempfile.TemporaryDirectory(prefix="bench-run-") as state:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        pool = PoolSpec(name="bench-run", first=FIRST_PORT, last=FIRST_PORT + 2 * BOUND - 1, cooldown_ms=0)
        environment |= {
            "XDG_STATE_HOME": state, "ALLOCATOR_REDIS_URL": found["unix"],
            "ALLOCATOR_POOL": pool.name, "ALLOCATOR_HOST": HOST,
        }  # fmt: skip
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # these are many processes: each runs where it can
        with PortAllocator.from_url(found["unix"], pool=pool.name, host=HOST) as ports:
            ports.apply_pool(pool)
            try:
                yield Setup(environment, ports)
            finally:
                for pid in all_pids():
                    if has_variable(pid, "XDG_STATE_HOME", state):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return what was measured; the first word of each name is who, the last the unit."""
    rounds = 3 if quick else 15
    with site(binary) as here:
        return {
            **_idle(here),
            **_agent(here, ends=3 if quick else 10),
            "start_ms": Spread.of(_starts(here, rounds)),
            "stop_s": Spread.of([_stop(here) for _ in range(2 if quick else 5)]),
            "refused_ms": Spread.of([_refused(here) for _ in range(rounds)]),
        }


def _idle(site: Setup) -> dict[str, Any]:
    """Watch a supervisor of one worker and one of many, both with health checks every five seconds."""
    arguments = ("--health", "/")
    found: dict[str, Any] = {}
    for count in (1, REPLICAS):
        process = site.run(*arguments, "--replicas", str(count), worker=HEALTHY)
        until(lambda count=count: [one.state for one in site.ports.leases()] == ["ready"] * count)
        time.sleep(SETTLE_S)
        share = _share(process.pid, WATCHED_S) / count
        found |= {f"cpu_of_{count}": share, f"rss_of_{count}_mib": rss_mib(process.pid)}
        process.terminate()
        process.wait()
    return found


def _agent(site: Setup, ends: int) -> dict[str, Any]:
    """Watch an agent with leases bound to a process each, then end some of those."""
    files = LeaseFiles(Path(site.environment["XDG_STATE_HOME"]) / "allocator/leases")
    with contextlib.ExitStack() as stack:
        bound = []
        for number in range(BOUND):
            process = stack.enter_context(subprocess.Popen(["sleep", "3600"]))
            stack.callback(process.kill)
            lease = site.ports.claim("email", org=f"org-{number}", pid=process.pid)
            files.save(lease)
            bound.append((process, lease))
        agent = site.start("agent", stderr=subprocess.PIPE)
        assert agent.stderr is not None
        next(line for line in agent.stderr if f"looking after {BOUND} " in line)
        time.sleep(SETTLE_S)
        before = {one.port: one.expires_at for one in site.ports.leases()}
        share = _share(agent.pid, WATCHED_S)
        after = {one.port: one.expires_at for one in site.ports.leases()}
        if len(after) != BOUND or any(after[port] <= at for port, at in before.items()):
            raise SystemExit(f"the agent renewed {sum(after[p] > before[p] for p in after)} of {BOUND} leases only")
        delays = []
        for process, lease in bound[:ends]:
            process.kill()
            began = time.monotonic()
            while site.ports.run(port_view(lease.pool, HOST, lease.port)).lease is not None:
                time.sleep(0.002)
            delays.append((time.monotonic() - began) * 1_000)
        memory = rss_mib(agent.pid)
        agent.terminate()
        agent.wait()
    site.ports.release_all(*(lease for _, lease in bound[ends:]))
    return {"agent_cpu": share, "agentrss_mib": memory, "agent_release_ms": Spread.of(delays)}


def _starts(site: Setup, rounds: int) -> list[float]:
    """Return by how many milliseconds a worker listens later when it is started through `run`."""
    port = FIRST_PORT + 1

    def direct() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-S", "-c", LISTEN, str(port)], text=True)

    def supervised() -> subprocess.Popen[str]:
        return site.run("--port", str(port), worker=LISTEN)

    taken: dict[str, list[float]] = {"direct": [], "supervised": []}
    for at in range(rounds):
        order = [("direct", direct), ("supervised", supervised)]
        for name, start in order[:: -1 if at % 2 else 1]:
            began = time.monotonic()
            process = start()
            until(lambda: _connects(port), every_s=0.001)
            taken[name].append((time.monotonic() - began) * 1_000)
            process.terminate()
            process.wait()
    return [through - alone for through, alone in zip(taken["supervised"], taken["direct"], strict=True)]


def _stop(site: Setup) -> float:
    """Return the seconds from SIGTERM until nothing is left of a worker that ignores it, and of its supervisor."""
    process = site.run(worker=STUBBORN)
    until(lambda: [one.state for one in site.ports.leases()] == ["ready"])
    (lease,) = site.ports.leases()
    began = time.monotonic()
    process.terminate()
    process.wait()
    until(lambda: not site.ports.leases() and not Path(f"/proc/{lease.pid}").exists(), every_s=0.005)
    return time.monotonic() - began


def _refused(site: Setup) -> float:
    """Return the milliseconds from a worker's word that its port is in use until the next one runs on another port."""
    marker = Path(site.environment["XDG_STATE_HOME"]) / "refused"
    marker.unlink(missing_ok=True)
    printed, _ = site.run(worker=REFUSED, also=[str(marker)], stdout=subprocess.PIPE).communicate(timeout=60)
    first, second = (float(line) for line in printed.split())
    return (second - first) * 1_000


def _share(pid: int, seconds: float) -> float:
    """Return the part of a processor, in percent, that a process takes while it is watched."""
    before, began = _run_ns(pid), time.monotonic_ns()
    time.sleep(seconds)
    return 100.0 * (_run_ns(pid) - before) / (time.monotonic_ns() - began)


def _run_ns(pid: int) -> int:
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1_024


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Any, *, every_s: float = 0.02) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("what the benchmark waits for did not come; is the machine overloaded?")
        time.sleep(every_s)


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the rows of the table."""

    def number(what: str, value: float, target: float, unit: str, digits: int) -> Row:
        met = round(value, digits) <= target
        return Row(what, f"{value:.{digits}f}{unit}", "", f"≤ {target:g}{unit}", met)

    cpu = "processor time for an idle worker, health checked every 5 s"
    return [
        number("`run`: resident memory, one worker", found["rss_of_1_mib"], 20, " MiB", 1),
        number(f"`run`: resident memory, {REPLICAS} workers", found[f"rss_of_{REPLICAS}_mib"], 26, " MiB", 1),
        number(f"`run`: {cpu}, one alone", found["cpu_of_1"], 0.1, " %", 3),
        number(f"`run`: {cpu}, one of {REPLICAS}", found[f"cpu_of_{REPLICAS}"], 0.1, " %", 3),
        at_most("`run`: a worker listens later than started directly, by", found["start_ms"], 100, " ms", 0),
        at_most("`run`: SIGTERM until nothing is left of a worker that ignores it", found["stop_s"], 6, " s", 2),
        at_most("`run`: from EADDRINUSE to the start on another port", found["refused_ms"], 1_000, " ms", 0),
        number(f"`agent`: processor time to renew {BOUND:,} leases", found["agent_cpu"], 0.5, " %", 2),
        Row(f"`agent`: resident memory, {BOUND:,} leases", f"{found['agentrss_mib']:.1f} MiB", ""),
        at_most("`agent`: from a process's end to the release", found["agent_release_ms"], 1_000, " ms", 0),
    ]
