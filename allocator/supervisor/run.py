"""`run`: claim a port, start the worker on it, keep the lease while it runs, give the port back when it is gone.

The order at the end is what protects the next worker: the process group is empty before the port is released,
whatever ended it. A worker that the kernel refused its port (EADDRINUSE) gets another one.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from allocator.client.driving import describe_listener
from allocator.client.policies import MAX_DECLINES
from allocator.kernel.sockets import listeners
from allocator.model.errors import HeldError, LeaseLostError
from allocator.model.states import LeaseState
from allocator.supervisor.groups import CommandError, WorkerGroup
from allocator.supervisor.templates import check_command, fill_command, worker_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from allocator.client.blocking import PortAllocator
    from allocator.client.heartbeats import HeldLease
    from allocator.model.leases import Lease

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PASSED_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SERVER_FAILED = 2
"""What a worker of the plugin SDK exits with when its HTTP server could not listen."""
READY_POLL_S = 0.05
LOST_POLL_S = 0.5
STDERR_KEPT = 64
_IN_USE = (b"EADDRINUSE", b"Address already in use", b"address already in use")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What to run.

    Attributes:
        command: The words of the command, templates included.
        stop_timeout_s: How long the worker has to end by itself after SIGTERM, in seconds.
        explicit_port: Whether only the claimed port will do.
        environment: What the worker's environment starts from.
        talk: Says one line to the person who watches.
    """

    command: Sequence[str]
    stop_timeout_s: float
    explicit_port: bool
    environment: Mapping[str, str]
    talk: Callable[[str], None] = field(default=lambda _: None)


def check_run(command: Sequence[str]) -> None:
    """Check a command before anything is claimed for it.

    Raises:
        InvalidInputError: When a template in it has an unknown name.
        CommandError: When it does not exist or cannot be executed.
    """
    check_command(command)
    name = command[0]
    if "{" in name or shutil.which(name):
        return
    if Path(name).exists():
        raise CommandError(f"the command {name} cannot be run; make it executable", 126)
    raise CommandError(f"the command {name} does not exist; check its name and PATH", 127)


def run_worker(allocator: PortAllocator, claim: Callable[[], Lease], request: RunRequest) -> int:
    """Run a worker on a leased port until it ends or a signal ends it.

    Args:
        allocator: Holds the lease.
        claim: Claims the port; called again after each decline.
        request: What to run.

    Returns:
        What the worker exited with, 128 + n when signal n ended it.

    Raises:
        HeldError: When the explicit port is taken by another process, or too many ports were.
        LeaseLostError: When the lease was lost; the worker has been stopped.
        CommandError: When the command cannot be started.
    """
    with _Signals() as signals:
        for _ in range(MAX_DECLINES + 1):
            held = allocator.keep(claim())
            declined = False
            try:
                request.talk(f"{held.worker} runs on {held.lease.address}")
                attempt = _Attempt(allocator, held, request, signals)
                status = attempt.run()
                declined = status is None
                if status is not None:
                    return status
                who = describe_listener(held.port) or "another process"
                if request.explicit_port:
                    raise HeldError(
                        f"port {held.port} on {held.host} is in use by {who}; end it or omit --port",
                        host=held.host,
                        port=held.port,
                        worker=str(held.worker),
                    )
                request.talk(f"port {held.port} is in use by {who}; trying another")
            finally:
                allocator.let_go(held, declined=declined)
    raise HeldError(f"{MAX_DECLINES + 1} ports in a row were in use by other processes; see 'allocator doctor'")


class _Attempt:
    """One start of the command on one port."""

    def __init__(
        self,
        allocator: PortAllocator,
        held: HeldLease[threading.Event],
        request: RunRequest,
        signals: _Signals,
    ) -> None:
        self._allocator = allocator
        self._held = held
        self._request = request
        self._signals = signals
        self._ready = False
        self._last_lines: deque[bytes] = deque(maxlen=STDERR_KEPT)

    def run(self) -> int | None:
        """Return the exit status, or None when the kernel refused the port to the worker."""
        held, request = self._held, self._request
        command = fill_command(request.command, held.lease)
        group = WorkerGroup(command, worker_environment(request.environment, held.lease))
        pump = threading.Thread(target=self._pass_stderr, args=(group.process.stderr,), daemon=True)
        pump.start()
        try:
            self._allocator.update(held, pid=group.pid)
            self._watch(group)
        finally:
            group.stop(0.0 if self._signals.hurried else request.stop_timeout_s)
            pump.join(timeout=1.0)
        if held.lost.is_set():
            raise held.error or LeaseLostError(f"the lease of {held.worker} is lost")
        code = group.process.returncode
        if code and not self._ready and not self._signals.stopping and self._refused(code):
            return None
        return 128 - code if code < 0 else code

    def _watch(self, group: WorkerGroup) -> None:
        with group.watched() as ended:
            poller = select.poll()
            poller.register(ended, select.POLLIN)
            poller.register(self._signals.descriptor, select.POLLIN)
            while group.process.poll() is None and not self._held.lost.is_set():
                poller.poll((LOST_POLL_S if self._ready else READY_POLL_S) * 1_000)
                for number in self._signals.received():
                    self._handle(group, number)
                if self._held.draining.is_set() and not self._signals.stopping:
                    self._request.talk(f"host {self._held.host} is draining: stopping {self._held.worker}")
                    self._signals.stopping = True
                    self._handle(group, signal.SIGTERM)
                if self._signals.hurried:
                    return
                if not self._ready and self._listens(group):
                    self._ready = True
                    with contextlib.suppress(ValueError):  # the host began to drain
                        self._allocator.update(self._held, state=LeaseState.READY)

    def _handle(self, group: WorkerGroup, number: int) -> None:
        if number in STOP_SIGNALS and not self._signals.hurried:
            with contextlib.suppress(ValueError):
                self._allocator.update(self._held, state=LeaseState.DRAINING)
            threading.Thread(target=group.stop, args=(self._request.stop_timeout_s,), daemon=True).start()
        elif number in PASSED_SIGNALS:
            group.signal(number)

    def _listens(self, group: WorkerGroup) -> bool:
        if self._signals.stopping:
            return False
        members = set(group.members())
        return any(listener.pid in members for listener in listeners(self._held.port, self._held.port))

    def _refused(self, code: int) -> bool:
        if any(sign in line for line in self._last_lines for sign in _IN_USE):
            return True
        return code == SERVER_FAILED and bool(listeners(self._held.port, self._held.port))

    def _pass_stderr(self, stream: BinaryIO) -> None:
        with stream:
            while chunk := stream.readline(65_536):
                self._last_lines.append(chunk)
                with contextlib.suppress(OSError):
                    sys.stderr.buffer.write(chunk)
                    sys.stderr.buffer.flush()


class _Signals:
    """Signals of the supervisor, as numbers that can be waited for together with the worker's end."""

    def __init__(self) -> None:
        self.stopping = False
        self.hurried = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        self.descriptor, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in STOP_SIGNALS + PASSED_SIGNALS:
            self._previous[number] = signal.signal(number, lambda *_: None)
        self._previous_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned
        os.close(self.descriptor)
        os.close(self._writer)

    def received(self) -> Iterator[int]:
        """Yield the signals that came since the last time; the second one that stops is in a hurry."""
        try:
            numbers = os.read(self.descriptor, 64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in STOP_SIGNALS:
                self.hurried = self.stopping
                self.stopping = True
            yield number
