"""Keeping one file current with the ready workers, and telling a proxy when it changed.

The file is replaced in one step or not at all, at most once a second, and only when its text is another. Whatever goes
wrong is said and tried again: Redis away (the last file stays), a directory that vanished, a command that failed.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import time
from typing import TYPE_CHECKING

from allocator.model.errors import AllocatorError, ConfigurationError, StoreUnavailableError
from allocator.model.owned import replace_shared

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from allocator.discovery.directory import Directory

PERIOD_S = 1.0
"""The shortest time between two replacements: a reload is dear, and changes come in bursts."""
RETRY_FIRST_S = 1.0
RETRY_LONGEST_S = 30.0
COMMAND_TIMEOUT_S = 60.0


def replace_file(path: Path, text: str) -> bool:
    """Write a text file in one step, readable for all; return whether that changed it.

    Raises:
        ConfigurationError: When it cannot be written.
    """
    try:
        return replace_shared(path, text)
    except OSError as error:
        raise ConfigurationError(
            f"the file {path} cannot be written ({error.strerror}); make its directory, make room or fix its rights"
        ) from None


def run_command(command: str) -> None:
    """Run a shell command, its output on standard error.

    Raises:
        AllocatorError: When it fails or does not end in time.
    """
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=2,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AllocatorError(f"the command {command!r} did not end within {COMMAND_TIMEOUT_S:g} s; mend it") from None
    if done.returncode:
        raise AllocatorError(f"the command {command!r} failed with exit code {done.returncode}; mend it")


class Exporter:
    """Keeps a file current until it is stopped.

    Args:
        directory: Knows the ready workers.
        render: Makes the file's text of them.
        path: The file.
        command: What to run after each replacement, or None.
        talk: Says one line to the person who watches.
        clock: The monotonic clock, in seconds.
    """

    def __init__(
        self,
        directory: Directory,
        render: Callable[[Directory], str],
        path: Path,
        *,
        command: str | None = None,
        talk: Callable[[str], None] = lambda _line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._render = render
        self._path = path
        self._command = command
        self._talk = talk
        self._clock = clock
        self._stopping = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._command_due = False
        self._failures = 0

    def __repr__(self) -> str:
        return f"<Exporter to {self._path}, {self._failures} failures in a row>"

    def stop(self) -> None:
        """End `run` within a second; the file stays as it is. From any thread or signal handler.

        A signal handler may interrupt the wait that it ends; the lock of an event would then be held by its own thread,
        for ever. A `SimpleQueue` may be filled at any moment.
        """
        self._stopping = True
        self._wakes.put(None)

    def run(self) -> None:
        """Keep the file current until `stop`."""
        seen = -1
        while not self._stopping:
            began = self._clock()
            try:
                self._directory.start()
                seen = self._directory.wait_for_change(-1, 0)
                self.export()
            except AllocatorError as error:
                self._failed(error)
                continue
            self._failures = 0
            self._pause(PERIOD_S - (self._clock() - began))
            while not self._stopping and self._directory.wait_for_change(seen, PERIOD_S) == seen:
                if not self._path.exists():  # somebody removed it
                    break

    def export(self) -> None:
        """Write the file once, and run the command if it changed or the command failed last time.

        Raises:
            AllocatorError: When the file cannot be written or the command fails.
        """
        if replace_file(self._path, self._render(self._directory)):
            self._command_due = self._command is not None
            self._talk(f"{self._path} is written")
        if self._command_due and self._command is not None:
            run_command(self._command)
            self._command_due = False

    def _failed(self, error: AllocatorError) -> None:
        pause_s = min(RETRY_FIRST_S * 2 ** min(self._failures, 8), RETRY_LONGEST_S)
        stays = "; the last file stays" if isinstance(error, StoreUnavailableError) else ""
        self._talk(f"{error}{stays}; trying again in {pause_s:g} s")
        self._failures += 1
        self._pause(pause_s)

    def _pause(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._wakes.get(timeout=max(0.0, seconds))
