"""What workers write: passed through as it comes, or with the worker's name before each line; the last of it is kept.

Bytes are never changed: a line may be in any encoding. A supervisor whose own output is closed goes on reading, so
that its workers do not stand still.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT_LINES = 20
CHUNK = 65_536
LONGEST_LINE = 8_192
"""A line that is longer is cut where it is kept, and broken where a name stands before each line."""

_writing = threading.Lock()


class Output:
    """Reads the streams of one start of a worker until they end.

    Args:
        pipes: The streams, with their names.
        prefix: What stands before each line, or None to pass everything through as it comes.
    """

    def __init__(self, pipes: Sequence[tuple[str, BinaryIO]], prefix: str | None) -> None:
        self._prefix = None if prefix is None else prefix.encode()
        self._kept: deque[bytes] = deque(maxlen=KEPT_LINES)
        self._threads = [
            threading.Thread(target=self._pass, args=(pipe, 2 if name == "stderr" else 1), daemon=True)
            for name, pipe in pipes
        ]
        for thread in self._threads:
            thread.start()

    def finish(self, timeout_s: float) -> None:
        """Wait until all was read that the worker wrote, for at most so long: an orphan may keep its streams open."""
        for thread in self._threads:
            thread.join(timeout_s)

    @property
    def last_errors(self) -> list[bytes]:
        """The last lines of standard error."""
        return list(self._kept)

    def _pass(self, pipe: BinaryIO, target: int) -> None:
        rest = b""
        with pipe:
            while chunk := _read(pipe):
                if self._prefix is None:
                    _write(target, chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LONGEST_LINE:
                    lines.append(rest)
                    rest = b""
                self._take(lines, target)
        if rest:
            self._take([rest], target)

    def _take(self, lines: list[bytes], target: int) -> None:
        if target == 2:
            self._kept.extend(line[:LONGEST_LINE] for line in lines)
        if self._prefix is not None and lines:
            _write(target, b"".join(self._prefix + line + b"\n" for line in lines))


def _read(pipe: BinaryIO) -> bytes:
    try:
        return os.read(pipe.fileno(), CHUNK)
    except OSError:
        return b""


def _write(target: int, content: bytes) -> None:
    with _writing, contextlib.suppress(OSError):
        while content:
            content = content[os.write(target, content) :]
