"""`top` at a real terminal and into a pipe."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from servers import Server

Steps = list[tuple[bytes, Callable[[int], object]]]


def pressing(keys: bytes) -> Callable[[int], object]:
    return lambda terminal: os.write(terminal, keys)


def screen_of(allocator, columns: int, rows: int, steps: Steps, **variables: str) -> tuple[str, int]:
    """Run `top` on a terminal of that size; return what it wrote and its status.

    Each step waits until something new is written and then does something, most with the terminal.
    """
    import fcntl
    import struct
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "allocator", "top", "--every", "200ms"],
        env=allocator.environment(TERM="xterm", **variables), cwd=allocator.state, stdin=its, stdout=its, stderr=its,
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


def test_one_picture_into_a_pipe(allocator, ports, pool) -> None:
    lease = ports.claim("email", org="org-1")
    done = allocator("top", "--once", COLUMNS="100")
    assert done.code == 0
    assert "1 of 44 ports leased (2 %) on 1 hosts" in done.out
    assert f"{lease.port}" in done.out
    assert "org-1/email#0" in done.out
    assert "granted" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    assert "\x1b" not in done.out


@pytest.mark.parametrize("keys", [b"q", b"\x03"])
def test_it_fits_80_by_24_and_gives_the_terminal_back(allocator, ports, pool, keys: bytes) -> None:
    for instance in range(30):
        ports.claim("email", org="an-organisation-with-a-long-name", instance=instance)
    written, status = screen_of(allocator, 80, 24, [(b"\x1b[J", pressing(keys))])
    assert status == (0 if keys == b"q" else 130)
    picture = written.partition("\x1b[H")[2].partition("\x1b[J")[0]
    lines = picture.replace("\x1b[K", "").replace("\r", "").split("\n")
    import re

    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert len(plain) <= 24
    assert max(map(len, plain)) <= 80
    assert "more leases" in picture
    assert written.rstrip().endswith("\x1b[?25h\x1b[?1049l")


def test_a_redis_that_goes_away_is_said_and_the_picture_comes_back(allocator) -> None:
    with Server() as server:
        server.ready()
        steps = [
            (b"ports leased", lambda _: server.process.send_signal(signal.SIGSTOP)),
            (b"Redis is away, trying again", lambda _: server.process.send_signal(signal.SIGCONT)),
            (b"ports leased", pressing(b"q")),
        ]
        own = {"ALLOCATOR_REDIS_URL": server.url, "ALLOCATOR_POOL": "sdk-v2", "ALLOCATOR_CONNECT_TIMEOUT": "300ms"}
        written, status = screen_of(allocator, 80, 24, steps, **own)
    assert status == 0
    assert written.rstrip().endswith("\x1b[?25h\x1b[?1049l")


def test_without_a_terminal_it_says_what_to_do(allocator) -> None:
    done = allocator("top")
    assert done.code == 2
    assert "--once" in done.err
