"""One file that always has the ready workers, and the command that a proxy needs after a change.

The file is replaced in one step or not at all, at most once a second, and only when its text is another. Whatever goes
wrong is reported and tried again: Redis away (the last file stays), a directory that vanished, a command that failed
or hung.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from allocator.kernel.outlets import may_block, relay
from allocator.model.backoff import Backoff
from allocator.model.errors import AllocatorError, ConfigurationError, RecoveringError, StoreUnavailableError
from allocator.model.log import ERROR, WARNING
from allocator.model.owned import holds, replace_shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from allocator.discovery.directory import Directory

PERIOD_S = 1.0
"""The shortest time between two replacements: a reload is expensive, and changes come in bursts."""
RETRY = Backoff(first=1.0, longest=30.0, least=1.0)
"""Without spread: only one exporter writes a file, and it logs when it tries again."""
COMMAND_TIMEOUT_S = 60.0
POLL_S = 0.1
"""How soon a running command is ended when it has to be."""
END_S = 2.0
"""Time between asking a command to end and killing it."""


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


def run_command(
    command: str, timeout_s: float = COMMAND_TIMEOUT_S, is_ended: Callable[[], bool] = lambda: False
) -> None:
    """Run a shell command in a process group of its own, its output on standard error, whether read or not.

    Args:
        command: The command.
        timeout_s: Time that it has; then it is ended with all that it started.
        is_ended: Whether it is to be ended before.

    Raises:
        AllocatorError: When it fails, does not end in time or is ended.
    """
    process: subprocess.Popen[bytes] | None = None
    relayed: threading.Thread | None = None
    deadline = time.monotonic() + timeout_s
    try:
        with _signals_deferred():
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if may_block(2) else 2,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        relayed = relay(process.stdout, 2) if process.stdout else None
        while process.poll() is None:
            if is_ended():
                raise AllocatorError(f"the command {command!r} was ended before it was done; run it again")
            if time.monotonic() >= deadline:
                raise AllocatorError(
                    f"the command {command!r} did not end within {timeout_s:g} s and was ended; "
                    "fix it, or give it more time with --exec-timeout"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(POLL_S, max(0.0, deadline - time.monotonic())))
    except OSError as error:
        raise AllocatorError(f"the command {command!r} cannot be started ({error.strerror}); make room") from None
    finally:
        if process is not None and process.poll() is None:
            _end_group(process)
        if relayed is not None:
            relayed.join(POLL_S)  # what it left in the background may keep the pipe open
    if process.returncode:
        how = f"with exit code {process.returncode}" if process.returncode > 0 else f"by signal {-process.returncode}"
        raise AllocatorError(f"the command {command!r} failed {how}; fix it")


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Let the signals that end this program wait for the end of the block.

    Their handlers raise; an exception in the middle of `Popen` would lose the process that was started.
    """
    seen: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [one for one in (signal.SIGTERM, signal.SIGINT) if is_main and callable(signal.getsignal(one))]
    before = {one: signal.signal(one, lambda number, _frame: seen.append(number)) for one in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in seen:
            signal.raise_signal(late)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it started: asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
            break
    with contextlib.suppress(ProcessLookupError):  # what ignored the first signal, though the shell did not
        os.killpg(process.pid, signal.SIGKILL)


class _Due:
    """The mark beside a file that a command is due: it was not run, or failed, since the file changed.

    It is on disk before the file changes, so that the next export runs the command, whatever ended this one.
    """

    def __init__(self, path: Path) -> None:
        target = Path(os.path.realpath(path))
        self._mark = target.with_name(f".{target.name}.due")

    def __bool__(self) -> bool:
        return self._mark.exists()

    def set(self) -> None:
        replace_file(self._mark, "")

    def clear(self) -> None:
        with contextlib.suppress(OSError):
            self._mark.unlink()


class Exporter:
    """Keeps a file current until it is stopped.

    Args:
        directory: Knows the ready workers.
        render: Makes the file's text of them.
        path: The file.
        command: What to run after each replacement, or None.
        timeout_s: Time that the command has.
        report: Prints one line for the person who watches.
        clock: The monotonic clock, in seconds.
    """

    def __init__(
        self,
        directory: Directory,
        render: Callable[[Directory], str],
        path: Path,
        *,
        command: str | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        report: Callable[..., None] = lambda _line, **_level: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._render = render
        self._path = path
        self._command = command
        self._timeout_s = timeout_s
        self._report = report
        self._clock = clock
        self._stopping = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._due = _Due(path)
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
        """Write the file once, and run the command if it changed, or if the command has not succeeded since it did.

        Raises:
            RecoveringError: When Redis has lost its data, so that workers of the present file may be missing.
            AllocatorError: When the file cannot be written or the command fails.
        """
        text = self._render(self._directory)
        left_s = self._directory.incomplete_s
        if left_s and self._path.exists() and not holds(self._path, text):
            raise RecoveringError(
                f"Redis is empty or has lost its data, and workers may be missing that renew their leases soon; "
                f"{self._path} stays as it is: export again in {left_s:.0f} s",
                retry_after=left_s,
            )
        if self._command is not None and not holds(self._path, text):
            self._due.set()
        if replace_file(self._path, text):
            self._report(f"{self._path} is written")
        if self._command is not None and self._due:
            run_command(self._command, self._timeout_s, lambda: self._stopping)
            self._due.clear()

    def _failed(self, error: AllocatorError) -> None:
        if self._stopping:
            self._report(str(error), level=ERROR)
            return
        pause_s = RETRY.pause(self._failures + 1)
        stays = "; the last file stays" if isinstance(error, StoreUnavailableError) else ""
        self._report(f"{error}{stays}; trying again in {pause_s:g} s", level=WARNING)
        self._failures += 1
        self._pause(pause_s)

    def _pause(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._wakes.get(timeout=max(0.0, seconds))
