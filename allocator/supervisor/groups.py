"""The process group of a worker: started, signalled as one, and gone before its port is given back.

A signal goes to the group, because a worker is often a shell with the real server below it: the shell dies of the
signal and leaves the server behind. The group is empty only when no process in it is left, not when its leader ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from allocator.kernel.processes import process_group_members
from allocator.model.errors import AllocatorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

POLL_S = 0.02
KILL_WAIT_S = 5.0
_PR_SET_PDEATHSIG = 1


class CommandError(AllocatorError):
    """The worker's command cannot be started.

    Attributes:
        status: What a shell would exit with: 127 when it does not exist, 126 when it cannot be run.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class WorkerGroup:
    """A running worker and whatever it started in its process group.

    Args:
        command: The words of its command.
        environment: Its whole environment.

    Raises:
        CommandError: When the command cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        parent = os.getpid()
        libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

        def die_with_supervisor() -> None:
            if libc is not None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(1)

        try:
            self.process = subprocess.Popen(
                list(command),
                env=dict(environment),
                process_group=0,
                preexec_fn=die_with_supervisor,  # noqa: PLW1509  # the supervisor has no lock that a fork could copy held
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise CommandError(f"the command {command[0]} does not exist; check its name and PATH", 127) from error
        except OSError as error:
            raise CommandError(f"the command {command[0]} cannot be run ({error.strerror})", 126) from error
        self.pid = self.process.pid

    def __repr__(self) -> str:
        return f"<WorkerGroup {self.pid}, {len(self.members())} processes>"

    def members(self) -> list[int]:
        """Return the processes of the group that are alive."""
        return process_group_members(self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    @contextlib.contextmanager
    def watched(self) -> Iterator[int]:
        """Give a descriptor that is readable once the group's leader has ended."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (OSError, AttributeError):
            # No pidfd in this kernel: a pipe that nobody writes to, so that the caller's time limit does the looking.
            descriptor, writer = os.pipe()
            try:
                yield descriptor
            finally:
                os.close(writer)
                os.close(descriptor)
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def stop(self, timeout_s: float) -> None:
        """End the whole group: SIGTERM, after `timeout_s` seconds SIGKILL for what is left; return when it is gone."""
        if self.members():
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
            self._wait_until_empty(timeout_s)
        if self.members():
            self.signal(signal.SIGKILL)
            self._wait_until_empty(KILL_WAIT_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=KILL_WAIT_S)

    def _wait_until_empty(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.process.poll()
            if not self.members():
                return
            time.sleep(POLL_S)
