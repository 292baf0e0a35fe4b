"""What a supervisor prints never stands in its way: not a heartbeat, not a restart, not a stop waits for a reader."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from supervised import Fleet, eventually, finish

from allocator.kernel.processes import process_table

if TYPE_CHECKING:
    from collections.abc import Iterator

F_SETPIPE_SZ = 1031
TALKATIVE = (
    "import http.server, os, sys, threading\n"
    "class H(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self): self.send_response(200); self.end_headers()\n"
    "    def log_message(self, *_): pass\n"
    "def talk():\n"
    "    while True:\n"
    "        for stream in (1, 2): os.write(stream, b'x' * 199 + b'\\n')\n"
    "threading.Thread(target=talk, daemon=True).start()\n"
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()"
)
TTL_S = 3.0
STOP_TIMEOUT_S = 5.0


@contextlib.contextmanager
def small_pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    pipe = os.fstat(writer)
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4_096)
    try:
        yield reader, writer
    finally:
        for descriptor in (reader, writer):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), pipe):  # not closed by the test and given to another
                    os.close(descriptor)


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    with small_pipe() as (_, writer):
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writer, b"x" * 4_096):
                pass
        os.set_blocking(writer, True)
        yield writer


def talkative(fleet: Fleet, *arguments: str, **options: object) -> subprocess.Popen:
    arguments = ("--ttl", f"{TTL_S:g}s", "--health", "/", "--stop-timeout", f"{STOP_TIMEOUT_S:g}s", *arguments)
    return fleet.run(*arguments, command=[sys.executable, "-c", TALKATIVE, "{port}"], **options)


def lives_through_three_ttls(fleet: Fleet) -> None:
    before = fleet.lease()
    until = time.monotonic() + 3 * TTL_S
    while time.monotonic() < until:
        now = fleet.lease()
        assert (now.fence, now.restarts) == (before.fence, 0)
        time.sleep(0.05)
    eventually(lambda: fleet.lease().state == "ready")  # a check may be late beside a worker that never rests


@pytest.mark.parametrize("unread", ["stdout", "stderr", "both"])
def test_behind_a_full_pipe_it_renews_for_three_ttls_and_ends_in_time(fleet: Fleet, unread: str) -> None:
    with small_pipe() as (_, full), Path(os.devnull).open("wb") as null:
        streams = {name: full if unread in {name, "both"} else null.fileno() for name in ("stdout", "stderr")}
        process = talkative(fleet, **streams)
        lives_through_three_ttls(fleet)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        assert time.monotonic() - began < STOP_TIMEOUT_S + 1.0
    assert process.returncode == 128 + signal.SIGTERM
    assert fleet.ports.leases() == []
    assert not fleet.listening()


def test_a_restart_does_not_wait_for_a_reader_either(fleet: Fleet) -> None:
    with small_pipe() as (_, full):
        talkative(fleet, stdout=full, stderr=full)
        before = fleet.lease()
        os.kill(before.pid, signal.SIGKILL)
        eventually(lambda: fleet.lease().restarts == 1)
        assert fleet.lease().port == before.port


def test_a_pipe_that_was_closed_and_a_full_disk_stop_nobody(fleet: Fleet) -> None:
    with small_pipe() as (reader, closed), Path("/dev/full").open("wb") as full:
        talkative(fleet, stdout=closed, stderr=full.fileno())
        os.close(reader)
        lives_through_three_ttls(fleet)


def test_a_disk_that_is_full_fails_no_worker_whose_output_is_a_file(fleet: Fleet, tmp_path: Path) -> None:
    """The limit of a file's size is a disk of a size; Node.js and Python end with an error that is not caught."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))  # noqa: E731  # as short as can be
        talkative(fleet, stdout=file, stderr=subprocess.DEVNULL, preexec_fn=limit)
        eventually(lambda: log.stat().st_size == 65_536)
        lives_through_three_ttls(fleet)


def test_a_non_blocking_pipe_loses_no_line_that_there_is_room_for(fleet: Fleet) -> None:
    write = "import os\nfor number in range(2000): os.write(1, b'%05d %s\\n' % (number, b'x' * 93))"
    with small_pipe() as (reader, writer):
        os.set_blocking(writer, False)
        fleet.run(command=[sys.executable, "-c", write], stdout=writer, stderr=subprocess.DEVNULL)
        os.close(writer)
        seen = b""
        while chunk := os.read(reader, 4_096):
            seen += chunk
    assert [int(line.split()[0]) for line in seen.splitlines()] == list(range(2_000))


def test_what_was_dropped_is_counted_and_reported_once_somebody_reads(fleet: Fleet) -> None:
    with small_pipe() as (reader, full):
        process = talkative(fleet, stdout=full, stderr=full)
        lives_through_three_ttls(fleet)
        seen = b""
        while b"lines of standard output could not be written" not in seen:
            seen = seen[-65_536:] + os.read(reader, 65_536)
        process.terminate()
        os.close(full)
        while os.read(reader, 65_536):
            pass
        process.wait(timeout=60)


def test_a_terminal_that_was_stopped_stops_neither_worker_nor_supervisor(fleet: Fleet) -> None:
    import pty

    screen, terminal = pty.openpty()
    try:
        process = talkative(fleet, stdout=subprocess.DEVNULL, stderr=terminal)
        termios.tcflow(terminal, termios.TCOOFF)
        lives_through_three_ttls(fleet)
        process.terminate()
        process.wait(timeout=60)
        assert fleet.ports.leases() == []
    finally:
        os.close(terminal)
        os.close(screen)


STUBBORN = (
    "import os, signal, socket, sys, time\n"
    "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)\n"
    "server = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
    "while True: os.write(2, b'x' * 199 + b'\\n')"
)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_stubborn_worker_at_once_behind_a_full_pipe(
    fleet: Fleet, first: signal.Signals, second: signal.Signals
) -> None:
    with small_pipe() as (_, full):
        command = [sys.executable, "-c", STUBBORN, "{port}"]
        process = fleet.run("--stop-timeout", "10m", command=command, stdout=full, stderr=full)
        lease = fleet.lease()
        process.send_signal(first)
        fleet.lease("draining")
        process.send_signal(second)
        process.wait(timeout=20)
    assert process.returncode == 128 + signal.SIGKILL
    assert lease.pid not in process_table()
    assert fleet.ports.leases() == []


def test_a_second_signal_ends_it_although_redis_does_not_answer(fleet: Fleet, redis_pid: int) -> None:
    process = fleet.run("--stop-timeout", "10m", command=[sys.executable, "-c", STUBBORN, "{port}"])
    process.stdout.close()
    process.stderr.close()
    lease = fleet.lease()
    os.kill(redis_pid, signal.SIGSTOP)
    try:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.wait(timeout=60)
        assert time.monotonic() - began < 4.0
        eventually(lambda: lease.pid not in process_table())
    finally:
        os.kill(redis_pid, signal.SIGCONT)


@pytest.fixture
def redis_pid(fleet: Fleet) -> int:
    with redis.Redis.from_url(fleet.redis_url) as client:
        return int(client.info()["process_id"])


def test_agents_servers_and_exports_end_behind_a_full_pipe_too(fleet: Fleet) -> None:
    commands = (
        ["agent"],
        ["serve", "--listen", "127.0.0.1:0"],
        ["export", "env", "--watch", "--out", "workers.env"],
    )
    with full_pipe() as full:
        started = [fleet.spawn(*arguments, stdout=full, stderr=full) for arguments in commands]
        eventually((fleet.state / "workers.env").exists)
        eventually(lambda: all(_handles_sigterm(one.pid) for one in started))
        for process in started:
            process.terminate()
        assert [process.wait(timeout=60) for process in started] == [0, 0, 0]


def test_the_command_of_an_export_does_not_wait_for_a_reader(fleet: Fleet) -> None:
    with full_pipe() as full:
        reload = "seq 1 100000; seq 1 100000 >&2; touch reloaded"
        exporting = fleet.spawn("export", "env", "--out", "workers.env", "--exec", reload, stdout=full, stderr=full)
        assert exporting.wait(timeout=60) == 0
    assert (fleet.state / "reloaded").exists()


def _handles_sigterm(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_command_that_prints_one_line_does_not_hang_behind_a_full_pipe(fleet: Fleet) -> None:
    with full_pipe() as full:
        process = fleet.spawn("show", "org-1/email", stderr=full)
        process.communicate(timeout=60)
    assert process.returncode == 73


def test_output_that_is_read_is_passed_through_byte_for_byte(fleet: Fleet) -> None:
    status, out, _ = finish(fleet.run(command=["sh", "-c", "seq 1 200000"]), timeout=60)
    assert status == 0
    assert out == "".join(f"{number}\n" for number in range(1, 200_001))
