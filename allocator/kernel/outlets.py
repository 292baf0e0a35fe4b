"""Output that never blocks the program: a thread writes the lines and waits for the reader.

A pipe that nobody reads, a slow or non-blocking one, a stopped or closed terminal and a full disk may cost lines, but
never time. Output that cannot be written is held in memory up to a limit; beyond it the oldest lines are dropped,
counted, and reported once there is room. Flags of the descriptor are never changed: other processes may share it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
import time
from collections import deque
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BYTES = 1 << 20
"""Bytes held for a slow reader: a minute of a worker with much output, and little compared with a supervisor."""

PIECE = 4_096
"""Bytes in one write: a pipe with room takes them as a whole, not mixed with the output of others (PIPE_BUF)."""

CHUNK = 65_536
"""Bytes in one read of a pipe."""

STALL_S = 0.25
"""A reader that has read nothing for this long is not waited for."""

PATIENCE_S = 1.0
"""How long a command that prints and ends waits for room for its output."""

RETRY_S = 1.0
"""How often a full disk, or a pipe that was closed, is tried again."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Outlet:
    """Writes to one descriptor from a thread of its own, which starts with the first line.

    Args:
        descriptor: Where to write.
        most_bytes: How much is kept while nobody reads.
        report: Called, from that thread, with the number of lines that were lost, once there is room.
    """

    def __init__(
        self, descriptor: int, *, most_bytes: int = MOST_BYTES, report: Callable[[int], None] | None = None
    ) -> None:
        self.report = report
        self.lost = 0
        """How many lines were lost in all."""
        self._descriptor, self._most = descriptor, most_bytes
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._in_hand = b""
        self._taken_at = 0.0
        self._retry_at = 0.0
        self._unreported = 0
        self._reported_at = 0.0
        self._skips_line = False
        self._is_broken = False
        self._ends_line = True
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Outlet {self._descriptor}, {self._size} bytes kept, {self.lost} lines lost>"

    def write(self, content: bytes, *, patient: bool = False) -> None:
        """Queue output for the thread; returns at once.

        Args:
            content: Lines, or a part of one.
            patient: Whether to wait for a slow reader; for a caller that passes on more than is held in memory.
        """
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"output {self._descriptor}", daemon=True)
                with contextlib.suppress(RuntimeError):  # Python itself is about to end
                    thread.start()
                    self._thread = thread
            if patient and self._size + len(content) > self._most and not self._is_stalled():
                self._changed.wait_for(lambda: self._size + len(content) <= self._most, STALL_S)
            self._keep(content)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written, while somebody reads; return whether it is."""
        until = time.monotonic() + timeout_s
        if not self._await_end(until):
            return False
        self._report(at_the_end=True)
        return self._await_end(until)

    def _await_end(self, until: float) -> bool:
        with self._changed:
            while self._queue or self._in_hand:
                left_s = until - time.monotonic()
                if left_s <= 0 or self._is_stalled():
                    return False
                self._changed.wait(min(left_s, STALL_S / 2))
        return True

    # -- with the lock held --

    def _is_stalled(self) -> bool:
        return bool(self._in_hand) and time.monotonic() - self._taken_at > STALL_S

    def _keep(self, content: bytes) -> None:
        if self._skips_line:  # its beginning was dropped
            content = content[content.find(b"\n") + 1 :] if b"\n" in content else b""
            self._skips_line = not content
        if not content:
            return
        if time.monotonic() < self._retry_at and not self._in_hand:  # closed a moment ago
            self._count(content)
            return
        self._queue.append(content)
        self._size += len(content)
        while self._size > self._most:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._queue.popleft()
        self._size -= len(oldest)
        self._count(oldest)
        self._is_broken = True
        if oldest.endswith(b"\n"):
            return
        while self._queue:  # the rest of the line that was begun
            following = self._queue.popleft()
            self._size -= len(following)
            rest = following.partition(b"\n")[2]
            if rest:
                self._queue.appendleft(rest)
                self._size += len(rest)
            if b"\n" in following:
                return
        self._skips_line = True

    def _count(self, dropped: bytes) -> None:
        lines = dropped.count(b"\n") + (not dropped.endswith(b"\n"))
        self.lost += lines
        self._unreported += lines

    def _take(self) -> bytes:
        taken = [self._queue.popleft()]
        size = len(taken[0])
        while self._queue and size + len(self._queue[0]) <= PIECE:
            taken.append(self._queue.popleft())
            size += len(taken[-1])
        self._size -= size
        return b"".join(taken)

    # -- the thread --

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                self._in_hand = self._take()
                if self._is_broken and not self._ends_line:
                    self._in_hand = b"\n" + self._in_hand
                self._is_broken = False
                self._taken_at = time.monotonic()
                self._changed.notify_all()
            self._pass_on()
            self._report()

    def _pass_on(self) -> None:
        while self._in_hand:
            try:
                written = os.write(self._descriptor, self._next_piece())
            except BlockingIOError:
                self._await_room()
            except OSError as error:
                if error.errno in _FULL:
                    time.sleep(RETRY_S)
                else:
                    self._give_up()
            else:
                with self._changed:
                    self._ends_line = self._in_hand[written - 1 : written] == b"\n"
                    self._in_hand = self._in_hand[written:]
                    self._taken_at = time.monotonic()
                    self._changed.notify_all()

    def _next_piece(self) -> bytes:
        """Wait for room and return what to write: whole lines as far as they fit."""
        select_room(self._descriptor, None)
        piece = self._in_hand[:PIECE]
        return piece[: piece.rfind(b"\n") + 1] or piece if len(self._in_hand) > PIECE else piece

    def _await_room(self) -> None:
        time.sleep(0.01)  # it was ready a moment ago and somebody else was faster

    def _give_up(self) -> None:
        """Nobody can read any more: drop all; a named pipe may be opened again, so that it is tried again later."""
        with self._changed:
            for content in (self._in_hand, *self._queue):
                self._count(content)
            self._in_hand = b""
            self._queue.clear()
            self._size = 0
            self._retry_at = time.monotonic() + RETRY_S
            self._changed.notify_all()

    def _report(self, *, at_the_end: bool = False) -> None:
        with self._changed:
            now = time.monotonic()
            if not self._unreported or self.report is None or now < self._retry_at:
                return
            if not at_the_end and (self._size > self._most // 2 or now < self._reported_at + RETRY_S):
                return
            lines, self._unreported, self._reported_at = self._unreported, 0, now
        self.report(lines)


def select_room(descriptor: int, timeout_s: float | None) -> bool:
    """Wait until a descriptor accepts a line, or fails for good; return False when the time is over."""
    poller = select.poll()
    try:
        poller.register(descriptor, select.POLLOUT)
        return bool(poller.poll(None if timeout_s is None else timeout_s * 1_000))
    except OSError:
        return True  # writing tells what is wrong


def may_block(descriptor: int) -> bool:
    """Return whether writing there may block or fail: a pipe or socket that nobody reads, a file on a full disk.

    A terminal does not count: programs behave differently at one, so they get it directly.
    """
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)


def relay(pipe: IO[bytes], descriptor: int) -> threading.Thread:
    """Copy everything from a pipe to the outlet of a descriptor, in a thread that ends with the pipe."""

    def pass_on() -> None:
        with pipe, contextlib.suppress(OSError):
            while chunk := os.read(pipe.fileno(), CHUNK):
                outlet(descriptor).write(chunk, patient=True)

    thread = threading.Thread(target=pass_on, name=f"relay to {descriptor}", daemon=True)
    thread.start()
    return thread


_outlets: dict[int, Outlet] = {}
_making = threading.Lock()


def outlet(descriptor: int) -> Outlet:
    """Return the outlet of a descriptor of this process; all who write there share it."""
    with _making:
        found = _outlets.get(descriptor)
        if found is None:
            found = _outlets[descriptor] = Outlet(descriptor)
        return found


def flush_outlets(timeout_s: float = 1.0) -> None:
    """Wait until all outlets have written what they were given, as long as somebody reads."""
    until = time.monotonic() + timeout_s
    for each in sorted(_outlets, key=lambda descriptor: descriptor == 2):  # what the others lost is reported there
        _outlets[each].flush(max(0.0, until - time.monotonic()))
