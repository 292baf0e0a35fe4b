"""The life of one worker: a port claimed, the command started on it, started again when it fails, the port given back.

The lease is kept over a restart, so the port stays the same. A worker that the kernel refused its port (EADDRINUSE)
gets another one. Each worker lives in a thread of its own; it gets messages through its mailbox.
"""

from __future__ import annotations

import contextlib
import select
import signal
import threading
import time
from typing import TYPE_CHECKING

from allocator.kernel.answers import describe_listener, prove_port
from allocator.kernel.identity import start_time_of
from allocator.kernel.socket_tables import closing_ports
from allocator.model.errors import AllocatorError, HeldError, LeaseLostError
from allocator.model.log import ERROR, WARNING
from allocator.model.names import WorkerId
from allocator.model.states import LeaseState
from allocator.model.values import Value
from allocator.supervisor.claim import claim_ports
from allocator.supervisor.groups import CommandError
from allocator.supervisor.held import HeldPorts
from allocator.supervisor.mailbox import STOPS, Command, Mailbox, Passed
from allocator.supervisor.passed_sockets import listening_socket
from allocator.supervisor.restarts import Restarts
from allocator.supervisor.start import WorkerStart

if TYPE_CHECKING:
    import socket

    from allocator.client.blocking import PortAllocator
    from allocator.client.lease_files import LeaseFiles
    from allocator.model.leases import Lease
    from allocator.supervisor.children import Children
    from allocator.supervisor.spec import Reporter, WorkerSpec
    from allocator.supervisor.start import Ended

STOPPED_BEFORE_START = 143
"""What a worker that was stopped before it had a port exits with, unless a signal decides otherwise: that of
SIGTERM."""


class _Outcome(Value):
    """What happens to the ports after their worker has ended.

    Attributes:
        declined: The port that goes into quarantine, or None.
        in_use: Whether that is because another process has it: other ports are then tried.
    """

    declined: int | None = None
    in_use: bool = False


SUSPEND_S = 1.0
"""How long Ctrl-Z waits until the lease tells that the worker stands still."""

CLAIM_GRACE_S = 1.0
"""How long a claim that is under way may take to answer when the supervisor has to stop."""


class Worker:
    """One worker under supervision.

    Args:
        allocator: Claims and keeps its lease.
        spec: What to run.
        children: The supervisor's processes.
        report: Prints one line for the person who watches.
        files: Where a hook of this user leaves its leases.
        prefix: What stands before each line of its output, or None.
    """

    def __init__(
        self,
        allocator: PortAllocator,
        spec: WorkerSpec,
        children: Children,
        report: Reporter,
        *,
        files: LeaseFiles | None = None,
        prefix: str | None = None,
    ) -> None:
        self.id = WorkerId(spec.claim["org"], spec.plugin, spec.claim.get("instance", 0))
        self.ready = threading.Event()
        """Set while it is ready; cleared when it is started again."""
        self.over = threading.Event()
        """Set when it has ended for good."""
        self._allocator, self._spec, self._children, self._report = allocator, spec, children, report
        self._files, self._prefix = files, prefix
        self._mailbox = Mailbox()
        self._restarts = Restarts(spec.restart, spec.max_restarts, allocator.session.rng)
        self._status = STOPPED_BEFORE_START
        self._has_started = False
        self._running: WorkerStart | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.id}, {self._restarts.total} restarts>"

    # -- messages from other threads --

    def stop(
        self, *, at_once: bool = False, notified: bool = False, drains: bool = True, number: int = signal.SIGTERM
    ) -> None:
        """End the worker: by SIGTERM, or at once.

        Args:
            at_once: Whether it is killed, without time to clean up.
            notified: Whether its processes already got a signal to end.
            drains: Whether SIGTERM comes after the drain delay.
            number: The signal that asks for it, which is the status of a worker that has not started yet.
        """
        if not self._has_started:
            self._status = 128 + number
        gracefully = Command.STOP if drains else Command.QUIT
        self._mailbox.send(Command.KILL if at_once else Command.LEAVE if notified else gracefully)

    def restart(self) -> None:
        """End the worker gracefully and start it again on its port; this does not count as a failure."""
        self.ready.clear()
        self._mailbox.send(Command.RESTART)

    @property
    def seen_after_s(self) -> float:
        """Seconds until every reader of addresses has seen that it is ready, at most."""
        return self._spec.drain_delay_s

    @property
    def ends_after_s(self) -> float:
        """How long a graceful end may take."""
        return self._spec.drain_delay_s + self._spec.stop_timeout_s

    def forward_signal(self, number: int) -> None:
        """Forward a signal to its processes."""
        self._mailbox.send(Passed(number))

    def stopped_by(self) -> int | None:
        """Return the signal that stopped its first process since this was asked last, or None."""
        start = self._running
        return None if start is None else start.group.stopped_by()

    def suspend(self) -> None:
        """Stop its processes as Ctrl-Z does, and mark its lease; wait at most `SUSPEND_S` for that."""
        start = self._running
        if start is None:
            return
        start.suspended.clear()
        self._mailbox.send(Command.SUSPEND)
        start.suspended.wait(SUSPEND_S)

    def resume(self, *, lend: bool) -> None:
        """Continue its stopped processes; `lend`: with the terminal."""
        start = self._running
        if start is None:
            return
        if lend:
            start.group.lend_terminal()
        start.group.signal(signal.SIGCONT)
        self._mailbox.send(Command.RESUME)

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

    def _claim(self) -> dict[str, Lease] | None:
        """Claim its ports; None when a stop was requested meanwhile."""
        found: list[dict[str, Lease]] = []
        errors: list[BaseException] = []

        def claim() -> None:
            try:
                found.append(claim_ports(self._allocator, self._spec, self._files, self._report))
            except BaseException as error:  # noqa: BLE001  # raised again below, in the worker's own thread
                errors.append(error)
            self._mailbox.send(Command.LOOK)

        claiming = threading.Thread(target=claim, name=f"claim {self.id}", daemon=True)
        claiming.start()
        stopped = False
        while not (found or errors or stopped):
            stopped = self._wait_for_stop(None, but_not=Command.RESTART)
        claiming.join(CLAIM_GRACE_S)
        if stopped:
            for leases in found:
                with contextlib.suppress(AllocatorError):
                    self._allocator.release_all(*leases.values())
            return None
        if errors:
            raise errors[0]
        return found[0]

    def _serve(self, leases: dict[str, Lease]) -> bool:
        """Run the worker on its ports; return False when the kernel refused it one of them."""
        held = HeldPorts(self._allocator, leases)
        outcome = _Outcome(declined=held.port)
        try:
            outcome = self._run_on(held)
        except (CommandError, LeaseLostError):  # nothing was started, or all of it has ended
            outcome = _Outcome()
            raise
        finally:
            held.end_held(declined=outcome.declined)
        if outcome.in_use:
            self._explain_decline(held, outcome)
        return not outcome.in_use

    def _run_on(self, held: HeldPorts) -> _Outcome:
        with contextlib.ExitStack() as stack:
            listening: list[socket.socket] = []
            for port in held.ports.values() if self._spec.listen else ():
                passed = listening_socket(port)
                if passed is None:
                    return _Outcome(declined=port, in_use=True)
                listening.append(stack.enter_context(passed))
            self._report(f"{held.worker} runs on {held.where}", held.own.lease)
            while True:
                ended = self._start(held, listening)
                self.ready.clear()
                self._status = ended.status or int(ended.failed)
                outcome = self._outcome(held, ended)
                if outcome is not None:
                    return outcome
                for port in () if listening else held.ports.values():
                    if not prove_port(port) and not closing_ports([port]):
                        return _Outcome(declined=port, in_use=True)

    def _outcome(self, held: HeldPorts, ended: Ended) -> _Outcome | None:
        """Return what the end of one start means for the ports; None when the worker is to be started again."""
        if ended.left:
            self._report(
                f"{held.worker}: process {ended.left[0]} cannot be ended; port {held.port} is quarantined",
                held.own.lease,
                level=ERROR,
            )
            return _Outcome(declined=held.port)
        if ended.lost:
            raise ended.lost
        if ended.asked in STOPS or self._left_with_its_terminal(ended):
            return _Outcome()
        if ended.refused:
            return _Outcome(declined=ended.refused, in_use=True)
        return None if self._is_to_start_again(held, ended) else _Outcome()

    def _left_with_its_terminal(self, ended: Ended) -> bool:
        """Return whether it ended because somebody at its terminal wanted it to, or closed the terminal."""
        terminal = self._children.terminal
        if terminal is None:
            return False
        if terminal.is_gone():
            return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        return ended.had_terminal and ended.status in {128 + signal.SIGINT, 128 + signal.SIGQUIT}

    def _start(self, held: HeldPorts, listening: list[socket.socket]) -> Ended:
        def on_ready(after_s: float) -> None:
            self.ready.set()
            self._report(f"{held.worker} is ready on {held.where} ({after_s:.1f} s)", held.own.lease)

        start = WorkerStart(
            held,
            self._spec,
            self._children,
            self._mailbox,
            listening=listening,
            prefix=self._prefix,
            on_ready=on_ready,
            report=self._report,
        )
        started = start_time_of(start.pid)
        held.update(pid=start.pid, pid_started=started, started_at=int(time.time()), restarts=self._restarts.total)
        self._running, self._has_started = start, True
        try:
            return start.run()
        finally:
            self._running = None

    def _is_to_start_again(self, held: HeldPorts, ended: Ended) -> bool:
        """Report how it ended, and wait until it is to be started again; return False when it is not."""
        if ended.asked is Command.RESTART:
            return self._mark_starting(held)
        pause_s = self._restarts.pause_s(self._status, was_well=ended.was_well)
        if ended.failed:
            held.update(last_error=ended.why)
        if pause_s is None or held.draining:
            if ended.failed:
                self._record(held, ended.why)
                if self._restarts.in_a_row:
                    times = self._restarts.in_a_row + 1
                    self._report(
                        f"{held.worker} failed {times} times in a row and is given up: {ended.how}",
                        held.own.lease,
                        level=ERROR,
                    )
            return False
        if not self._mark_starting(held):
            return False
        self._report(
            f"{held.worker}: {ended.how}; starting it again on port {held.port} in {pause_s:.1f} s",
            held.own.lease,
            level=WARNING,
        )
        return not self._wait_for_stop(pause_s)

    def _mark_starting(self, held: HeldPorts) -> bool:
        """Set the leases to `starting` and count the restart; on a draining host change nothing and return False."""
        if held.draining:
            return False
        try:
            held.update(state=LeaseState.STARTING)
        except ValueError:  # its host is drained at this moment
            return False
        self._restarts.total += 1
        return True

    def _record(self, held: HeldPorts, why: str) -> None:
        """Write why the worker failed before its lease ends: in the lease, and in an event that outlives it."""
        with contextlib.suppress(AllocatorError):
            self._allocator.renew(held.own.lease, rewrite=True)
            held.record(why)

    def _explain_decline(self, held: HeldPorts, outcome: _Outcome) -> None:
        port = outcome.declined or held.port
        who = describe_listener(port) or "another process"
        if self._spec.explicit_port:
            raise HeldError(
                f"port {port} on {held.own.host} is in use by {who}; end it or omit --port",
                host=held.own.host,
                port=port,
                worker=str(held.worker),
            )
        self._report(f"{held.worker}: port {port} is in use by {who}; trying another", held.own.lease, level=WARNING)

    def _wait_for_stop(self, timeout_s: float | None, *, but_not: Command | None = None) -> bool:
        """Wait for messages while no process runs; return whether one of them stops the worker."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(self._mailbox.descriptor, select.POLLIN)
        while until is None or time.monotonic() < until:
            poller.poll(None if until is None else max(0.0, until - time.monotonic()) * 1_000)
            for order in self._mailbox.take():
                if order in STOPS:
                    return True
                if order is Command.LOOK or (order is Command.RESTART and but_not is not Command.RESTART):
                    return False
        return False
