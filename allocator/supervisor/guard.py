"""The guard: a small shell that ends the workers' process groups when the supervisor was killed.

The kernel's parent-death signal reaches a worker's first process only; a listener two processes below it would live
on with its port. The guard reads from a pipe that only the supervisor holds open: when the pipe ends without the
groups having been forgotten, it kills them. It must never end a group that was forgotten.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from typing import Self

_SCRIPT = """
trap '' HUP INT QUIT TERM TSTP PIPE
groups=' '
while read -r word group; do
    case $word in
        add) groups="$groups$group " ;;
        forget) groups="${groups%% $group *} ${groups#* $group }" ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
"""
"""Groups are kept between single spaces; a group is forgotten once and only after it was added."""


class Guard:
    """The guard of one supervisor; it is started with the first worker, and again when somebody ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._writer = -1
        self._groups: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._close()

    def __repr__(self) -> str:
        return f"<Guard of {len(self._groups)} groups>"

    @property
    def pid(self) -> int | None:
        """The guard's process, or None when it does not run."""
        return self._process.pid if self._process else None

    def ready(self) -> int:
        """Return the descriptor on which a new worker announces itself, before it becomes its command."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._writer

    def added(self, group: int) -> None:
        """Note that a group has announced itself."""
        with self._lock:
            self._groups.add(group)

    def forget(self, group: int) -> None:
        """Note that a group is empty: its number may become somebody else's."""
        with self._lock:
            self._groups.discard(group)
            self._say("forget", group)

    def _start(self) -> None:
        self._close()
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT],
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(reader)
        for group in self._groups:
            self._say("add", group)

    def _say(self, word: str, group: int) -> None:
        if self._writer >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._writer, announcement(word, group))

    def _close(self) -> None:
        if self._process is None:
            return
        for group in self._groups:
            self._say("forget", group)
        os.close(self._writer)
        self._writer = -1
        self._process.wait()
        self._process = None


def announcement(word: str, group: int) -> bytes:
    """Return a line for the guard; written in one piece, for it is far shorter than a pipe's atomic size."""
    return f"{word} {group}\n".encode()
