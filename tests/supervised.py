"""`allocator run` as a process, and workers of both kinds under it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from allocator.kernel.processes import all_pids, has_variable, process_table
from allocator.kernel.socket_tables import listening_ports
from allocator.kernel.sockets import listeners

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator import Lease, PoolSpec, PortAllocator

ROOT = Path(__file__).parents[1]
WAIT_S = 30.0
PYTHON_WORKER = [
    sys.executable,
    str(ROOT / "deploy/demo/worker.py"),
    f"--plugin-path={ROOT / 'deploy/demo/plugins/email'}",
    "--org-id={org}",
    "--port={port}",
]
NODE_WORKER = [str(ROOT / "tests/workers/npx"), f"--plugin-path={ROOT}", "--org-id={org}", "--port={port}"]
WORKERS = [
    pytest.param(PYTHON_WORKER, id="python"),
    pytest.param(NODE_WORKER, id="node", marks=pytest.mark.skipif(not shutil.which("node"), reason="needs node")),
]
LEAVE = {
    "setsid": 'setsid "$@" & exec sleep 600',
    "a daemon": '(setsid "$@" &) & exec sleep 600',
    "setsid without its environment": 'env -i PATH="$PATH" setsid "$@" & exec sleep 600',
    "a daemon without its environment": '(env -i PATH="$PATH" setsid "$@" &) & exec sleep 600',
}
"""How a worker's listener leaves the process group of its first process."""
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="needs node")


def eventually(condition: Callable[[], object], what: str = "it never came true", within_s: float = WAIT_S) -> object:
    """Wait until a condition is true and return its value."""
    pause, deadline = threading.Event(), time.monotonic() + within_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        pause.wait(0.02)
    raise AssertionError(what)


def is_running(pid: int) -> bool:
    row = process_table().get(pid)
    return row is not None and row.alive


@dataclass
class Fleet:
    """Runs supervisors in one pool on one host."""

    redis_url: str
    pool: PoolSpec
    ports: PortAllocator
    state: Path
    started: list[subprocess.Popen] = field(default_factory=list)

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        own = {
            "ALLOCATOR_REDIS_URL": self.redis_url,
            "ALLOCATOR_POOL": self.pool.name,
            "ALLOCATOR_HOST": "web-1",
            "XDG_STATE_HOME": str(self.state),
            "PYTHONPATH": str(ROOT),
        }
        return kept | own | variables

    def spawn(self, *arguments: str, variables: dict[str, str] | None = None, **options: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "allocator", *arguments],
            env=self.environment(**variables or {}),
            cwd=self.state,
            **{"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        )
        self.started.append(process)
        return process

    def run(
        self, *arguments: str, command: list[str] = PYTHON_WORKER, org: str = "org-1", **options: object
    ) -> subprocess.Popen:
        """Run a worker; it is stopped without the delay for proxies unless the words ask for one."""
        hurry = () if "--drain-delay" in arguments else ("--drain-delay", "0s")
        return self.spawn("run", "email", "--org", org, *hurry, *arguments, "--", *command, **options)

    def lease(self, state: str = "ready", org: str = "org-1") -> Lease:
        """Wait for the lease of an organisation to be in a state."""

        def found() -> Lease | None:
            return next((one for one in self.ports.leases(org=org) if one.state == state), None)

        return eventually(found, f"no lease of {org} became {state}")

    def started_lease(self, process: subprocess.Popen) -> Lease:
        """Wait until a supervisor has proven its port and starts its command; its standard error is read until then."""
        for line in process.stderr:
            if "runs on" in line:
                return self.ports.leases()[0]
        raise AssertionError("it never started")

    def listener(self, port: int) -> int:
        """Wait for somebody to listen on a port and return the process."""
        return eventually(
            lambda: next((one.pid for one in listeners(port, port) if one.pid), None), f"nobody listens on {port}"
        )

    def listening(self) -> frozenset[int]:
        return listening_ports(self.pool.first, self.pool.last)

    def processes_of(self, fence: int) -> list[int]:
        """Return the processes that were started under a lease, wherever they went."""
        return [pid for pid in all_pids() if has_variable(pid, "ALLOCATOR_FENCE", str(fence))]

    def events(self) -> list[str]:
        stream = f"alloc:{{{self.pool.name}}}:events"
        return [fields["type"] for _, fields in self.ports.store.newest_events(stream, 1_000)]

    def clean(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.terminate()
        late = []
        for process in self.started:
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                late.append(process)
        for pid in all_pids():  # what a failed test left behind, which may hold the pipes of those that are late
            if has_variable(pid, "XDG_STATE_HOME", str(self.state)):
                os.kill(pid, 9)
        for process in late:
            process.communicate()


def finish(process: subprocess.Popen, timeout: float = 30) -> tuple[int, str, str]:
    """Wait for a command and return its status and what it wrote; nothing may show a traceback."""
    out, err = process.communicate(timeout=timeout)
    assert "Traceback" not in err, err
    return process.returncode, out, err
