"""The life of one worker: a port claimed, the command started on it, started again when it fails, the port given back.

The lease is kept over a restart, so the port stays the same. A worker that the kernel refused its port (EADDRINUSE)
gets another one. Each worker lives in a thread of its own; it is told things through its mailbox.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from enum import Enum
from typing import TYPE_CHECKING

from allocator.client.driving import describe_listener
from allocator.client.superseding import claim_over_the_dead
from allocator.kernel.processes import start_time_of
from allocator.kernel.sockets import prove_port
from allocator.model.errors import AllocatorError, HeldError, LeaseLostError
from allocator.model.names import WorkerId
from allocator.model.states import LeaseState
from allocator.protocol.endings import fail
from allocator.supervisor.listening import listening_socket
from allocator.supervisor.mailbox import Command, Mailbox, Passed
from allocator.supervisor.restarts import Restarts
from allocator.supervisor.start import WorkerStart

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from allocator.client.blocking import PortAllocator
    from allocator.client.heartbeats import HeldLease
    from allocator.model.leases import Lease
    from allocator.supervisor.children import Children
    from allocator.supervisor.spec import WorkerSpec
    from allocator.supervisor.start import Ended

STOPPED_BEFORE_START = 143
"""What a worker that was stopped before it had a port exits with, as if SIGTERM had ended it."""


class _Outcome(Enum):
    """What becomes of a port once its worker does not run on it any more."""

    OVER = "over"
    IN_USE = "in use"
    LEFT_BEHIND = "left behind"


CLAIM_GRACE_S = 1.0
"""How long a claim that is under way may take to answer when the supervisor has to stop."""


class Worker:
    """One worker under supervision.

    Args:
        allocator: Claims and keeps its lease.
        spec: What to run.
        children: The supervisor's processes.
        talk: Says one line to the person who watches.
        prefix: What stands before each line of its output, or None.
    """

    def __init__(
        self,
        allocator: PortAllocator,
        spec: WorkerSpec,
        children: Children,
        talk: Callable[[str], None],
        *,
        prefix: str | None = None,
    ) -> None:
        self.id = WorkerId(spec.claim["org"], spec.plugin, spec.claim.get("instance", 0))
        self.ready = threading.Event()
        """Set while it is ready; cleared when it is started again."""
        self.over = threading.Event()
        """Set when it has ended for good."""
        self._allocator, self._spec, self._children, self._talk = allocator, spec, children, talk
        self._prefix = prefix
        self._mailbox = Mailbox()
        self._restarts = Restarts(spec.restart, spec.max_restarts, allocator.session.rng)
        self._status = STOPPED_BEFORE_START

    def __repr__(self) -> str:
        return f"<Worker {self.id}, {self._restarts.total} restarts>"

    # -- what others tell it --

    def stop(self, *, at_once: bool = False) -> None:
        """Let it end, gracefully or at once."""
        self._mailbox.send(Command.KILL if at_once else Command.STOP)

    def restart(self) -> None:
        """Let it end gracefully and start again on its port; that is no failure."""
        self.ready.clear()
        self._mailbox.send(Command.RESTART)

    def pass_on(self, number: int) -> None:
        """Pass a signal on to its processes."""
        self._mailbox.send(Passed(number))

    # -- its life --

    def run(self) -> int:
        """Run until it has ended for good.

        Returns:
            What the command exited with, 128 + n when signal n ended it.

        Raises:
            HeldError: When the explicit port is taken by another process, or too many ports were; when the worker
                has a lease elsewhere.
            LeaseLostError: When the lease was lost; the worker has been stopped.
            CommandError: When the command cannot be started.
            AllocatorError: When no port can be had.
        """
        with self._mailbox:
            try:
                for _ in range(self._spec.max_declines + 1):
                    lease = self._claim()
                    if lease is None or self._serve(lease):
                        return self._status
            finally:
                self.ready.clear()
                self.over.set()
        raise HeldError(
            f"{self.id}: {self._spec.max_declines + 1} ports in a row were in use by other processes; "
            "see 'allocator doctor'"
        )

    def _claim(self) -> Lease | None:
        """Claim a port; None when it was told to stop meanwhile."""
        found: list[Lease] = []
        errors: list[BaseException] = []

        def claim() -> None:
            arguments = self._spec.claim | {"holder_pid": os.getpid()}
            try:
                found.append(claim_over_the_dead(self._allocator, self._spec.plugin, self._spec.wait_s, **arguments))
            except BaseException as error:  # noqa: BLE001  # raised again below, in the worker's own thread
                errors.append(error)
            self._mailbox.send(Command.LOOK)

        claiming = threading.Thread(target=claim, name=f"claim {self.id}", daemon=True)
        claiming.start()
        stopped = False
        while not (found or errors or stopped):
            stopped = self._told_to_stop(None, but_not=Command.RESTART)
        claiming.join(CLAIM_GRACE_S)
        if stopped:
            for lease in found:
                with contextlib.suppress(AllocatorError):
                    self._allocator.release(lease)
            return None
        if errors:
            raise errors[0]
        return found[0]

    def _serve(self, lease: Lease) -> bool:
        """Run the worker on a port; return False when the kernel refused it the port."""
        held = self._allocator.keep(lease)
        outcome = _Outcome.OVER
        try:
            outcome = self._run_on(held)
        finally:
            self._allocator.let_go(held, declined=outcome is not _Outcome.OVER)
        if outcome is _Outcome.IN_USE:
            self._explain_decline(held)
        return outcome is not _Outcome.IN_USE

    def _run_on(self, held: HeldLease[threading.Event]) -> _Outcome:
        with contextlib.ExitStack() as stack:
            listening = None
            if self._spec.listen:
                listening = listening_socket(held.port)
                if listening is None:
                    return _Outcome.IN_USE
                stack.enter_context(listening)
            self._talk(f"{held.worker} runs on {held.lease.address}")
            while True:
                ended = self._start(held, listening)
                self.ready.clear()
                self._status = ended.status or int(ended.failed)
                outcome = self._outcome(held, ended)
                if outcome is not None:
                    return outcome
                if listening is None and not prove_port(held.port):
                    return _Outcome.IN_USE

    def _outcome(self, held: HeldLease[threading.Event], ended: Ended) -> _Outcome | None:
        """Return what the end of one start means for the port; None when the worker is to be started again."""
        if ended.left:
            self._talk(f"{held.worker}: process {ended.left[0]} cannot be ended; port {held.port} is quarantined")
            return _Outcome.LEFT_BEHIND
        if ended.lost:
            raise held.error or LeaseLostError(f"the lease of {held.worker} is lost")
        if ended.asked in {Command.STOP, Command.KILL}:
            return _Outcome.OVER
        if ended.refused:
            return _Outcome.IN_USE
        return None if self._is_to_start_again(held, ended) else _Outcome.OVER

    def _start(self, held: HeldLease[threading.Event], listening: socket.socket | None) -> Ended:
        def on_ready(after_s: float) -> None:
            self.ready.set()
            self._talk(f"{held.worker} is ready on {held.lease.address} ({after_s:.1f} s)")

        start = WorkerStart(
            self._allocator,
            held,
            self._spec,
            self._children,
            self._mailbox,
            listening=listening,
            prefix=self._prefix,
            on_ready=on_ready,
            talk=self._talk,
        )
        started = start_time_of(start.pid)
        self._allocator.update(held, pid=start.pid, pid_started=started, restarts=self._restarts.total)
        return start.run()

    def _is_to_start_again(self, held: HeldLease[threading.Event], ended: Ended) -> bool:
        """Say how it ended, and wait until it is to be started again; return False when it is not."""
        if ended.asked is Command.RESTART:
            self._restarts.total += 1
            self._allocator.update(held, state=LeaseState.STARTING)
            return True
        pause_s = self._restarts.pause_s(self._status, was_well=ended.was_well)
        if ended.failed:
            self._allocator.update(held, last_error=ended.why)
        if pause_s is None or held.draining.is_set():
            if ended.failed:
                self._record(held, ended.why)
                if self._restarts.in_a_row:
                    times = self._restarts.in_a_row + 1
                    self._talk(f"{held.worker} failed {times} times in a row and is given up: {ended.how}")
            return False
        self._restarts.total += 1
        self._allocator.update(held, state=LeaseState.STARTING)
        self._talk(f"{held.worker}: {ended.how}; starting it again on port {held.port} in {pause_s:.1f} s")
        return not self._told_to_stop(pause_s)

    def _record(self, held: HeldLease[threading.Event], why: str) -> None:
        """Write why the worker failed before its lease ends: in the lease, and in an event that outlives it."""
        with contextlib.suppress(AllocatorError):
            self._allocator.renew(held.lease, rewrite=True)
            self._allocator.run(fail(self._allocator.session.context, held.lease, why))

    def _explain_decline(self, held: HeldLease[threading.Event]) -> None:
        who = describe_listener(held.port) or "another process"
        if self._spec.explicit_port:
            raise HeldError(
                f"port {held.port} on {held.host} is in use by {who}; end it or omit --port",
                host=held.host,
                port=held.port,
                worker=str(held.worker),
            )
        self._talk(f"{held.worker}: port {held.port} is in use by {who}; trying another")

    def _told_to_stop(self, timeout_s: float | None, *, but_not: Command | None = None) -> bool:
        """Wait for orders while no process runs; return whether it was told to stop."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(self._mailbox.descriptor, select.POLLIN)
        while until is None or time.monotonic() < until:
            poller.poll(None if until is None else max(0.0, until - time.monotonic()) * 1_000)
            for order in self._mailbox.take():
                if order in {Command.STOP, Command.KILL}:
                    return True
                if order is Command.LOOK or (order is Command.RESTART and but_not is not Command.RESTART):
                    return False
        return False
