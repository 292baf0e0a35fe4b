"""`allocator run` at a terminal is as its command without it: reading, Ctrl-C, Ctrl-Z and fg, a closed window."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from supervised import Fleet, eventually, is_running

from allocator.kernel.processes import is_stopped

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not shutil.which("setsid") or not shutil.which("bash"), reason="needs setsid and bash")

TTL_S = 2.0
READER = """
import http.server, os, signal, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
if "--catch" in sys.argv:
    signal.signal(signal.SIGINT, lambda *_: (print("tidying up", flush=True), os._exit(7)))
server = http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("listening", os.getpid(), flush=True)
if "--stay" in sys.argv:
    assert not sys.stdin.read()
    threading.Event().wait()
for line in sys.stdin:
    print("read", line.strip().upper(), flush=True)
"""


class Shell:
    """A shell with job control at a terminal of its own."""

    def __init__(self, fleet: Fleet) -> None:
        self.screen, terminal = pty.openpty()
        self.seen = ""
        command = ["setsid", "-c", "bash", "--norc", "--noprofile", "-i"]
        environment = fleet.environment(PS1="$ ", TERM="dumb", HISTFILE="")
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, cwd=fleet.state
        )
        os.close(terminal)
        self._closing = threading.Event()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        poller = select.poll()
        poller.register(self.screen, select.POLLIN)
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                if poller.poll(50):
                    self.seen += os.read(self.screen, 4_096).decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def expect(self, text: str) -> None:
        """Wait until the screen shows a text, and forget what stands before its end."""

        def shown() -> bool:
            return text in self.seen

        try:
            eventually(shown)
        except AssertionError:
            raise AssertionError(f"{text!r} is not on the screen:\n{self.seen}") from None
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def foreground(self) -> int:
        return os.tcgetpgrp(self.screen)

    def close(self) -> None:
        """Close the window: nobody may read there at that moment, or it would stay open."""
        if not self._closing.is_set():
            self._closing.set()
            self._reading.join()
            os.close(self.screen)


@pytest.fixture
def shell(fleet: Fleet) -> Iterator[Shell]:
    one = Shell(fleet)
    yield one
    one.process.kill()
    one.close()
    one.process.wait()


def run(fleet: Fleet, *arguments: str, worker: tuple[str, ...] = ()) -> str:
    (fleet.state / "reader.py").write_text(READER)
    command = [
        sys.executable,
        "-m",
        "allocator",
        "run",
        "email",
        "--org",
        "org-1",
        "--ttl",
        f"{TTL_S:g}s",
        "--health",
        "/",
    ]
    return shlex.join([*command, *arguments, "--", sys.executable, "reader.py", *worker])


def test_a_worker_reads_what_is_typed_and_the_shell_has_its_terminal_back_at_the_end(
    fleet: Fleet, shell: Shell
) -> None:
    shell.type(run(fleet) + "\n")
    shell.expect("listening")
    lease = fleet.lease()
    assert shell.foreground() == lease.pid
    shell.type("hello\n")
    shell.expect("read HELLO")
    assert fleet.lease().state == "ready"
    shell.type("\x04")
    shell.expect("$ ")
    shell.type("echo status $?\n")
    shell.expect("status 0")
    assert fleet.ports.leases() == []


@pytest.mark.parametrize(("key", "status"), [("\x03", 130), ("\x1c", 131)])
def test_ctrl_c_and_ctrl_backslash_end_worker_and_supervisor(fleet: Fleet, shell: Shell, key: str, status: int) -> None:
    shell.type(run(fleet, "--restart", "always", "--drain-delay", "10m") + "\n")
    shell.expect("listening")
    lease = fleet.lease()
    shell.type(key)
    shell.expect("$ ")
    shell.type("echo status $?\n")
    shell.expect(f"status {status}")
    assert fleet.ports.leases() == []
    assert not is_running(lease.pid)


def test_ctrl_c_reaches_a_worker_that_tidies_up_once_and_it_is_not_started_again(fleet: Fleet, shell: Shell) -> None:
    shell.type(run(fleet, "--restart", "always", worker=("--catch",)) + "\n")
    shell.expect("listening")
    fleet.lease()
    shell.type("\x03")
    shell.expect("tidying up")
    shell.expect("$ ")
    shell.type("echo status $?\n")
    shell.expect("status 7")
    assert fleet.ports.leases() == []


def test_ctrl_z_stops_both_and_fg_goes_on_with_both_and_a_new_lease(fleet: Fleet, shell: Shell) -> None:
    shell.type(run(fleet) + "\n")
    shell.expect("listening")
    before = fleet.lease()
    supervisor = before.holder_pid
    shell.type("\x1a")
    shell.expect("Stopped")
    eventually(lambda: is_stopped(before.pid) and is_stopped(supervisor))
    eventually(lambda: not fleet.ports.leases(), "the lease of a worker that stands still did not end")
    shell.type("fg\n")
    after = fleet.lease()
    assert (after.port, after.pid, after.restarts) == (before.port, before.pid, 0)
    assert after.fence > before.fence
    assert shell.foreground() == before.pid
    shell.type("again\n")
    shell.expect("read AGAIN")


def test_a_worker_that_stands_still_is_not_ready_while_its_lease_lives(fleet: Fleet, shell: Shell) -> None:
    shell.type(run(fleet, "--ttl", "10m") + "\n")
    shell.expect("listening")
    fleet.lease()
    shell.type("\x1a")
    assert "stopped at its terminal" in fleet.lease("degraded").last_error
    shell.expect("Stopped")
    shell.type("fg\n")
    assert fleet.lease().restarts == 0


def test_bg_goes_on_without_the_terminal_and_reading_stops_it_again(fleet: Fleet, shell: Shell) -> None:
    shell.type(run(fleet) + "\n")
    shell.expect("listening")
    before = fleet.lease()
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.type("bg\n")
    shell.expect("&\r\n")

    def stopped_again() -> bool:
        shell.type("jobs\n")
        return "Stopped(SIGTTIN)" in shell.seen or "Stopped" in shell.seen

    eventually(stopped_again, "it reads, and has no terminal")
    shell.type("fg\n")
    eventually(lambda: shell.foreground() == before.pid)
    shell.type("more\n")
    shell.expect("read MORE")
    assert fleet.lease().pid == before.pid


def test_a_worker_of_a_background_job_that_reads_is_stopped_and_fg_lets_it_read(fleet: Fleet, shell: Shell) -> None:
    shell.type(run(fleet) + " &\n")
    shell.expect("listening")
    eventually(lambda: any(one.pid and is_stopped(one.pid) for one in fleet.ports.leases()))
    shell.type("fg\n")
    lease = fleet.lease()
    eventually(lambda: shell.foreground() == lease.pid)
    shell.type("now\n")
    shell.expect("read NOW")


def test_beside_a_pager_a_worker_gets_the_terminal_when_it_reads(fleet: Fleet, shell: Shell) -> None:
    shell.type(run(fleet) + " | cat\n")
    shell.expect("listening")
    lease = fleet.lease()
    shell.type("hello\n")
    shell.expect("read HELLO")
    assert shell.foreground() == lease.pid
    shell.type("\x03")
    shell.expect("$ ")
    eventually(lambda: not fleet.ports.leases())


@pytest.mark.parametrize(
    ("before", "workers", "after", "statuses"),
    [("", 1, " | cat", "7"), ("", 2, "", "7"), ("sleep 100 | ", 1, " 2>&1 | cat", "130 7")],
)
def test_where_no_worker_has_the_terminal_ctrl_c_reaches_every_worker_all_the_same(
    fleet: Fleet, shell: Shell, before: str, workers: int, after: str, statuses: str
) -> None:
    several = () if workers == 1 else ("--replicas", str(workers))
    shell.type(before + run(fleet, *several, worker=("--catch", "--stay")) + after + "\n")
    shell.expect("listening")  # the prompt of before stands no longer on the screen
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * workers)
    shell.type("\x03")
    shell.expect("$ ")
    shell.type("echo status ${PIPESTATUS[@]}\n")
    shell.expect(f"status {statuses}")
    assert fleet.ports.leases() == []


def test_closing_the_terminal_ends_a_background_job_whose_output_goes_elsewhere(fleet: Fleet, shell: Shell) -> None:
    shell.type(run(fleet, "--restart", "always", worker=("--stay",)) + " > out 2>&1 < /dev/null &\n")
    lease = fleet.lease()
    supervisor = lease.holder_pid
    shell.close()
    eventually(lambda: not is_running(supervisor), "the supervisor outlived its terminal")
    assert not is_running(lease.pid)
    assert fleet.ports.leases() == []


def test_several_workers_share_no_terminal_and_ctrl_z_stops_them_all(fleet: Fleet, shell: Shell) -> None:
    shell.type(run(fleet, "--replicas", "2", worker=("--stay",)) + "\n")
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 2)
    workers = [one.pid for one in fleet.ports.leases()]
    shell.type("\x1a")
    shell.expect("Stopped")
    eventually(lambda: all(is_stopped(pid) for pid in workers))
    shell.type("fg\n")
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 2)
    assert [one.pid for one in fleet.ports.leases()] == workers
    shell.type("\x03")
    eventually(lambda: not fleet.ports.leases())


@pytest.mark.parametrize("arguments", [(), ("--restart", "always")])
def test_closing_the_terminal_ends_worker_and_lease(fleet: Fleet, shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.type(run(fleet, *arguments) + "\n")
    shell.expect("listening")
    lease = fleet.lease()
    supervisor = lease.holder_pid
    shell.close()
    eventually(lambda: not is_running(supervisor), "the supervisor outlived its terminal")
    assert not is_running(lease.pid)
    assert fleet.ports.leases() == []
    assert fleet.events().count("granted") == 1


def test_under_nohup_worker_and_supervisor_outlive_the_terminal(fleet: Fleet, shell: Shell) -> None:
    shell.type(f"nohup {run(fleet, worker=('--stay',))} > out 2>&1 < /dev/null &\n")
    lease = fleet.lease()
    supervisor = lease.holder_pid
    shell.close()
    shell.process.wait()
    until = time.monotonic() + 3 * TTL_S
    while time.monotonic() < until:
        assert [(one.pid, one.fence) for one in fleet.ports.leases()] == [(lease.pid, lease.fence)]
        time.sleep(0.05)
    os.kill(supervisor, signal.SIGTERM)
    eventually(lambda: not is_running(supervisor))
    assert fleet.ports.leases() == []
