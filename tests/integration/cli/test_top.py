"""`top` at a real terminal and into a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis
from servers import Server

from allocator.cli.watched import WatchedPool
from allocator.model.states import LeaseState
from allocator.operations import hosts

Steps = list[tuple[bytes, Callable[[int], object]]]


def pressing(keys: bytes) -> Callable[[int], object]:
    return lambda terminal: os.write(terminal, keys)


def screen_of(allocator, columns: int, rows: int, steps: Steps, **variables: str) -> tuple[str, int]:
    """Run `top` on a terminal of that size; return what it wrote and its status.

    Each step waits until something new is written and then does something, most with the terminal.
    """
    ours, its = pty.openpty()
    terminal = {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "allocator", "top", "--every", "200ms"],
        env=allocator.environment(**terminal | variables), cwd=allocator.state, stdin=its, stdout=its, stderr=its,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # no threads here
    )  # fmt: skip
    os.close(its)
    written, seen, left, deadline = b"", 0, list(steps), time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.5)[0]:
            try:
                part = os.read(ours, 65_536)
            except OSError:
                break
            written += part
        if left and (at := written.find(left[0][0], seen)) >= 0:
            seen = at + len(left[0][0])
            left.pop(0)[1](ours)
    status = process.wait(timeout=10)
    os.close(ours)
    assert not left, written
    return written.decode(), status


def last_frame(written: str) -> list[str]:
    """Return the lines of the last whole picture, without colours."""
    frame = written.rpartition("\x1b[J")[0].rpartition("\x1b[H")[2]
    return re.sub(r"\x1b\[[0-9;]*[mK]|\r", "", frame).split("\n")


def failing(ports, error: str = "GET /health answered 503"):
    """Return a worker that fails its health check."""
    lease = ports.claim("email", org="org-17")
    (lease,) = ports.renew(replace(lease, state=LeaseState.DEGRADED, last_error=error, restarts=2), rewrite=True)
    return lease


def test_one_picture_into_a_pipe(allocator, ports, pool) -> None:
    """Problems, counters, hosts worst first, and no colour."""
    lease = failing(ports)
    done = allocator("top", COLUMNS="100")
    assert done.code == 0
    assert allocator("top", "--once", COLUMNS="100").out.splitlines()[3:] == done.out.splitlines()[3:]
    lines = done.out.splitlines()
    assert "1 of 44 ports leased on 1 host" in lines[0]
    assert lines[1] == "Problems (1)"
    assert lines[2].startswith(f"✕ critical  org-17/email#0 on web-1:{lease.port} fails its health check")
    assert (
        lines[3].strip() == f"allocator show {lease.port} --host web-1 --pool {pool.name}" or "--pool" not in lines[3]
    )
    assert "▲ 1 degraded" in "".join(lines[4:8])
    assert lines[-2] == "Hosts, worst first (1)"
    assert lines[-1].startswith("✕ web-1")
    assert lines[-1].count("▲") == 1
    assert lines[-1].count("·") == 43
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in done.out


def test_a_terminal_without_unicode_gets_letters(allocator, ports) -> None:
    failing(ports)
    done = allocator("top", PYTHONIOENCODING="ascii", COLUMNS="60")
    assert done.out.isascii()
    assert "d 1 degraded" in done.out
    assert max(map(len, done.out.splitlines())) <= 60


def test_a_dumb_terminal_gets_one_picture(allocator, ports) -> None:
    failing(ports)
    written, status = screen_of(allocator, 80, 24, [], TERM="dumb")
    assert status == 0
    assert "Hosts, worst first (1)" in written
    assert "\x1b" not in written


@pytest.mark.parametrize("keys", [b"q", b"\x03"])
def test_it_fits_80_by_24_and_gives_the_terminal_back(allocator, ports, pool, keys: bytes) -> None:
    for instance in range(30):
        ports.claim("email", org="an-organisation-with-a-long-name", instance=instance)
    failing(ports, "漢字" * 60)
    written, status = screen_of(allocator, 80, 24, [(b"\x1b[J", pressing(keys))])
    assert status == (0 if keys == b"q" else 130)
    lines = last_frame(written)
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80
    assert "31 of 44 ports leased" in lines[0]
    assert written.rstrip().endswith("\x1b[?25h\x1b[?1049l")


def test_enter_opens_a_lease_and_a_host_a_slash_filters_and_q_goes_back(allocator, ports, pool) -> None:
    lease = failing(ports)
    steps = [
        (b"Problems (1)", pressing(b"\r")),
        (b"What happened to the port", pressing(b"q")),
        (b"Problems (1)", pressing(b"\x1b[B\x1b[B\r")),
        (b"last heartbeat", pressing(b"\x1b[D")),
        (b"Problems (1)", pressing(b"/org-17 email")),
        (b"Workers (1)", pressing(b"\r\x1b[B\r")),
        (b"What happened to the port", pressing(b"q")),
        (b"Workers (1)", pressing(b"q")),
        (b"Hosts, worst first (1)", pressing(b"q")),
    ]
    written, status = screen_of(allocator, 80, 24, steps)
    assert status == 0
    opened = written.partition("What happened to the port")[0]
    for text in (f"Port {lease.port} on web-1", "org-17/email#0", "GET /health answered 503", "Restarts", "fails"):
        assert text in opened
    assert "changed degraded" in written
    assert "That is all since" in written
    assert "gives out ports; last heartbeat" in written


@pytest.mark.parametrize(("columns", "rows"), [(30, 8), (200, 60)])
def test_it_follows_the_size_of_its_terminal(allocator, ports, columns: int, rows: int) -> None:
    failing(ports)

    def resize(terminal: int) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    seen: list[int] = []
    written, status = screen_of(
        allocator,
        80,
        24,
        [(b"Problems (1)", resize), (b"Problems (1)", seen.append), (b"Problems (1)", pressing(b"q"))],
    )
    assert status == 0
    lines = last_frame(written)
    assert len(lines) == rows
    assert max(map(len, lines)) <= columns


def test_no_colour_is_written_where_none_is_wanted(allocator, ports) -> None:
    failing(ports)
    plain, _ = screen_of(allocator, 80, 24, [(b"Problems (1)", pressing(b"q"))], NO_COLOR="1")
    coloured, _ = screen_of(allocator, 80, 24, [(b"Problems (1)", pressing(b"q"))])
    assert re.findall(r"\x1b\[3\dm", plain) == []
    assert "\x1b[31m" in coloured


def test_a_filter_finds_drained_hosts(allocator, ports, pool) -> None:
    ports.claim("email", org="org-1")
    ports.run(hosts.drain(pool.name, "web-1"))
    steps = [(b"is draining", pressing(b"/drained\r")), (b"worst first (1)", pressing(b"qq"))]
    written, status = screen_of(allocator, 80, 24, steps)
    assert status == 0
    assert "web-1 (drained)" in "".join(last_frame(written))


def test_a_signal_that_ends_it_gives_the_terminal_back(allocator, ports) -> None:
    steps = [(b"Nothing is wrong.", lambda terminal: os.kill(os.tcgetpgrp(terminal), signal.SIGTERM))]
    written, status = screen_of(allocator, 80, 24, steps)
    assert status == 128 + signal.SIGTERM
    assert written.rstrip().endswith("\x1b[?25h\x1b[?1049l")


def test_a_terminal_that_was_stopped_does_not_keep_it_from_ending(allocator, ports) -> None:
    """Ctrl-S: the terminal takes nothing any more, neither the next picture nor what gives it back."""

    def stop_and_end(terminal: int) -> None:
        group = os.tcgetpgrp(terminal)
        os.write(terminal, b"\x13")
        os.kill(group, signal.SIGTERM)

    _, status = screen_of(allocator, 80, 24, [(b"Nothing is wrong.", stop_and_end)])
    assert status == 128 + signal.SIGTERM


def test_what_happens_is_seen_and_ended_leases_go(allocator, ports) -> None:
    lease = failing(ports)
    steps = [
        (b"Problems (1)", lambda _: ports.release(lease)),
        (b"Nothing is wrong.", lambda _: ports.claim("stripe", org="org-2")),
        (b"1 starting", pressing(b"q")),
    ]
    assert screen_of(allocator, 80, 24, steps)[1] == 0


def test_a_redis_that_goes_away_is_reported_and_the_picture_comes_back(allocator) -> None:
    with Server() as server:
        server.ready()
        steps = [
            (b"ports leased", lambda _: server.process.send_signal(signal.SIGSTOP)),
            (b"NOT LIVE since", lambda _: server.process.send_signal(signal.SIGCONT)),
            (b"  live ", pressing(b"q")),
        ]
        own = {"ALLOCATOR_REDIS_URL": server.url, "ALLOCATOR_POOL": "sdk-v2", "ALLOCATOR_CONNECT_TIMEOUT": "300ms"}
        written, status = screen_of(allocator, 80, 24, steps, **own)
    assert status == 0
    assert written.rstrip().endswith("\x1b[?25h\x1b[?1049l")


def test_the_past_of_a_port_is_found_behind_thousands_of_others_and_goes_on(ports, redis_url: str, pool) -> None:
    lease = ports.claim("email", org="org-1")
    other = {"type": "changed", "host": "web-2", "port": "1", "worker": "org-2/email#0", "fence": "1"}
    with redis.Redis.from_url(redis_url) as client, client.pipeline(transaction=False) as pipeline:
        for _ in range(2_500):
            pipeline.xadd(f"alloc:{{{pool.name}}}:events", other)
        pipeline.execute()
    watched = WatchedPool(ports, pool.name, 2.0, is_default=True)
    past = watched.past_of(lease.host, lease.port)
    assert [fields["type"] for _, fields in past.events] == ["granted"]
    ports.release(lease)
    assert watched.past_of(lease.host, lease.port) is past
    assert [fields["type"] for _, fields in past.events] == ["released", "granted"]
