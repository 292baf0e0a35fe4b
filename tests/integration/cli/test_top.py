"""`top` at a real terminal and into a pipe."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import pytest


def screen_of(allocator, columns: int, rows: int, keys: bytes = b"q") -> tuple[str, int]:
    """Run `top` on a terminal of that size until its first picture, press keys, return what it wrote and its status."""
    import fcntl
    import struct
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "allocator", "top", "--every", "200ms"],
        env=allocator.environment(TERM="xterm"), cwd=allocator.state, stdin=its, stdout=its, stderr=its,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # no threads here
    )  # fmt: skip
    os.close(its)
    written, deadline = b"", time.monotonic() + 30
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.5)[0]:
            try:
                part = os.read(ours, 65_536)
            except OSError:
                break
            written += part
        if b"\x1b[J" in written and keys:
            os.write(ours, keys)
            keys = b""
    status = process.wait(timeout=10)
    os.close(ours)
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
    written, status = screen_of(allocator, 80, 24, keys)
    assert status == (0 if keys == b"q" else 130)
    picture = written.partition("\x1b[H")[2].partition("\x1b[J")[0]
    lines = picture.replace("\x1b[K", "").replace("\r", "").split("\n")
    import re

    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert len(plain) <= 24
    assert max(map(len, plain)) <= 80
    assert "more leases" in picture
    assert written.rstrip().endswith("\x1b[?25h\x1b[?1049l")


def test_without_a_terminal_it_says_what_to_do(allocator) -> None:
    done = allocator("top")
    assert done.code == 2
    assert "--once" in done.err
