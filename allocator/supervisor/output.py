"""What workers write: passed through as it comes, or with the worker's name before each line; the last of it is kept.

Bytes are never changed: a line may be in any encoding. A supervisor whose own output nobody takes goes on reading, so
that its workers do not stand still (see `kernel.outlets`).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, BinaryIO

from allocator.kernel.outlets import CHUNK, outlet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LAST_LINES = 40
"""As many as the stack trace of an uncaught error has, with what Node.js prints around it."""

LONGEST_LINE = 8_192
"""A line that is longer is cut where it is kept, and broken where a name stands before each line."""


LONGEST_MESSAGE = 200
"""Characters of a worker's last line in its lease and in events."""

_FRAME = re.compile(r"\s+at |Node\.js v[0-9]|\s+\^+$|Require stack:$|- /|Emitted 'error' event")


class Output:
    """Reads the streams of one start of a worker until they end.

    Args:
        pipes: The streams, with their names.
        prefix: What stands before each line, or None to pass everything through as it comes.
    """

    def __init__(self, pipes: Sequence[tuple[str, BinaryIO]], prefix: str | None) -> None:
        self._prefix = None if prefix is None else prefix.encode()
        self._last_lines: deque[bytes] = deque(maxlen=LAST_LINES)
        self._threads = [
            threading.Thread(target=self._pass, args=(pipe, 2 if name == "stderr" else 1), daemon=True)
            for name, pipe in pipes
        ]
        for thread in self._threads:
            thread.start()

    def finish(self, timeout_s: float) -> None:
        """Wait until all was read that the worker wrote, for at most so long: an orphan may keep its streams open."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    @property
    def last_errors(self) -> list[bytes]:
        """The last lines of standard error."""
        return list(self._last_lines)

    def _pass(self, pipe: BinaryIO, target: int) -> None:
        rest = b""
        with pipe:
            while chunk := _read(pipe):
                if self._prefix is None:
                    outlet(target).write(chunk, patient=True)
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LONGEST_LINE:
                    lines.append(rest)
                    rest = b""
                self._take(lines, target)
        if rest:
            self._take([rest], target)

    def _take(self, lines: list[bytes], target: int) -> None:
        if target == 2:
            self._last_lines.extend(line[:LONGEST_LINE] for line in lines)
        if self._prefix is not None and lines:
            named = b"".join(self._prefix + line + b"\n" for line in lines)
            outlet(target).write(named, patient=True)


def last_message(lines: Sequence[bytes]) -> str:
    """Return the last line with content, control characters shown, at most 200 characters; empty for none.

    The frames of a stack trace, and what Node.js prints below the message of an error, are no information.
    """
    for text in reversed(list(_without_traces(line.decode("utf-8", "backslashreplace").rstrip() for line in lines))):
        if text.strip():
            visible = "".join(each if each.isprintable() else _escaped(each) for each in text.strip())
            return visible if len(visible) <= LONGEST_MESSAGE else visible[: LONGEST_MESSAGE - 1] + "…"
    return ""


def _without_traces(texts: Iterable[str]) -> Iterator[str]:
    """Yield lines without frames, and without an error's properties, which Node.js prints in braces behind the last."""
    is_property = False
    for text in texts:
        if _FRAME.match(text):
            is_property = text.endswith(" {")
        elif is_property:
            is_property = text != "}"
        else:
            yield text


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _read(pipe: BinaryIO) -> bytes:
    try:
        return os.read(pipe.fileno(), CHUNK)
    except OSError:
        return b""
