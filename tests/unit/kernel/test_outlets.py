"""Output that nobody takes costs lines, oldest first, and never the time of whoever writes them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from allocator.kernel.outlets import Outlet

if TYPE_CHECKING:
    from collections.abc import Iterator

LINES = [b"%06d %s\n" % (number, b"x" * 92) for number in range(20_000)]  # 100 bytes each
SOON_S = 10.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    with contextlib.suppress(OSError):
        os.close(reader)  # the writer stays open: an outlet's thread may be about to write to that number


def read_until(reader: int, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        chunk = os.read(reader, 65_536)
        assert chunk, "the pipe ended"
        found += chunk
    return found


def test_a_pipe_that_nobody_reads_keeps_the_newest_lines_whole_and_counts_the_others(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    reported: list[int] = []
    outlet = Outlet(writer, most_bytes=100_000, report=reported.append)
    began = time.monotonic()
    for line in LINES:
        outlet.write(line)
    assert time.monotonic() - began < SOON_S
    seen = read_until(reader, LINES[-1]).splitlines(keepends=True)
    assert outlet.flush(SOON_S)
    assert set(seen) <= set(LINES), "no line is broken"
    assert seen == sorted(seen), "and none is out of order"
    assert outlet.lost == len(LINES) - len(seen) > 10_000
    assert sum(reported) == outlet.lost


@pytest.mark.parametrize("size", [33, 1_000, 65_536])
def test_raw_pieces_that_cut_lines_anywhere_lose_whole_lines_only(pipe: tuple[int, int], size: int) -> None:
    reader, writer = pipe
    outlet = Outlet(writer, most_bytes=200_000)
    text = b"".join(LINES)
    for at in range(0, len(text), size):
        outlet.write(text[at : at + size])
    seen = read_until(reader, LINES[-1]).splitlines(keepends=True)
    assert outlet.lost
    whole = set(LINES)
    broken = [line for line in seen if line not in whole]
    assert len(broken) < len(seen) / 10, "only a line that was being written when its end was dropped"
    assert all(any(line.startswith(part.rstrip()) for line in LINES) for part in broken), "and no two are mixed"


def test_a_reader_that_is_slow_but_reads_loses_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    outlet = Outlet(writer, most_bytes=100_000)
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append(read_until(reader, LINES[-1])))
    reading.start()
    for at in range(0, len(LINES), 100):
        outlet.write(b"".join(LINES[at : at + 100]), patient=True)
    reading.join(SOON_S)
    assert (b"".join(found) == b"".join(LINES), outlet.lost) == (True, 0)


def test_who_is_patient_does_not_wait_for_a_reader_that_has_stopped(pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1], most_bytes=100_000)
    began = time.monotonic()
    for at in range(0, len(LINES), 100):
        outlet.write(b"".join(LINES[at : at + 100]), patient=True)
    assert time.monotonic() - began < SOON_S
    assert not outlet.flush(SOON_S)
    assert time.monotonic() - began < SOON_S, "flushing waits for nobody either"


def test_a_pipe_that_is_non_blocking_gets_every_line(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    outlet = Outlet(writer, most_bytes=10_000_000)
    for line in LINES:
        outlet.write(line)
    assert read_until(reader, LINES[-1]) == b"".join(LINES)
    assert outlet.lost == 0
    assert not os.get_blocking(writer), "the flags belong to all who have the pipe"


def test_a_closed_pipe_costs_lines_and_nothing_more(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    outlet = Outlet(writer)
    for line in LINES:
        outlet.write(line)
    assert outlet.flush(SOON_S)
    assert outlet.lost == len(LINES)


def test_a_full_disk_is_written_again_once_there_is_room(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    full = threading.Event()
    full.set()
    write = os.write

    def writing(descriptor: int, content: bytes) -> int:
        if full.is_set() and descriptor == writer:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    monkeypatch.setattr("allocator.kernel.outlets.os.write", writing)
    monkeypatch.setattr("allocator.kernel.outlets.RETRY_S", 0.05)
    reported = threading.Event()
    outlet = Outlet(writer, most_bytes=1_000, report=lambda _lines: reported.set())
    for line in LINES[:100]:
        outlet.write(line)
    assert not outlet.flush(SOON_S)
    full.clear()
    assert read_until(reader, LINES[99]).count(b"\n") < 100
    assert reported.wait(SOON_S)
