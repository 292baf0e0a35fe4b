"""One start of a worker on one port: from the command to the moment when none of its processes is left.

The order at the end is what protects the next worker: the processes are gone before anybody may release the port,
whatever ended the worker. Nothing here claims, releases or restarts.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from typing import TYPE_CHECKING

from allocator.client.health import STRANGER, Health, HealthCheck, Verdict
from allocator.kernel.port_watch import Owner, PortWatch
from allocator.kernel.probes import Probe
from allocator.kernel.processes import command_name
from allocator.kernel.socket_tables import closing_ports
from allocator.kernel.sockets import listeners
from allocator.model.log import WARNING
from allocator.model.states import LeaseState
from allocator.model.values import Value
from allocator.supervisor.children import MARK
from allocator.supervisor.groups import StartOrder, WorkerGroup
from allocator.supervisor.mailbox import STOPS, Command, Passed
from allocator.supervisor.output import Output, last_message
from allocator.supervisor.ports import SERVER_FAILED, reports_in_use
from allocator.supervisor.spec import ReadyWhen, report_nothing
from allocator.supervisor.templates import filled_command, worker_environment

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from allocator.model.errors import LeaseLostError
    from allocator.supervisor.children import Children
    from allocator.supervisor.held import HeldPorts
    from allocator.supervisor.mailbox import Mailbox, Order
    from allocator.supervisor.spec import Reporter, WorkerSpec

LONGEST_WAIT_S = 1.0
"""How soon a lost lease is noticed."""

STRANGER_GRACE_S = 1.0
"""How long a worker may run beside a stranger that has its port, until it ends by itself."""

FIRST_LOOK_S, SLOWEST_LOOK_S = 0.01, 0.1
SUSPEND_S = 0.5
"""How long to wait until Redis has recorded that the worker is stopped."""

KILL_WAIT_S = 5.0
OUTPUT_WAIT_S = 1.0


class Ended(Value, kw_only=True):
    """How one start of a worker ended.

    Attributes:
        status: What it exited with, 128 + n for signal n.
        refused: The port that the kernel refused it, or None.
        asked: The message that ended it, or None when it ended by itself or was given up.
        lost: Why one of its leases was lost, or None.
        was_well: Whether it had been healthy for a minute.
        given_up: Whether it was ended because it was not healthy.
        left: The processes that could not be ended.
        had_terminal: Whether it had the terminal when it ended.
        how: The end as a short text.
        why: The same with its last line, for `last_error`.
    """

    status: int
    refused: int | None
    asked: Command | None
    lost: LeaseLostError | None
    was_well: bool
    given_up: bool
    left: list[int]
    had_terminal: bool
    how: str
    why: str

    @property
    def failed(self) -> bool:
        """Whether that was a failure."""
        return self.given_up or self.status != 0


class WorkerStart:
    """One start.

    Args:
        held: Its leases.
        spec: What to start.
        children: The supervisor's processes.
        mailbox: Messages to the worker.
        listening: The sockets to pass, one for each port, or none.
        prefix: The text before each line of its output, or None.
        on_ready: Called once it is ready.
        report: Prints one line for the person who watches.
    """

    def __init__(
        self,
        held: HeldPorts,
        spec: WorkerSpec,
        children: Children,
        mailbox: Mailbox,
        *,
        listening: Sequence[socket.socket] = (),
        prefix: str | None = None,
        on_ready: Callable[[float], None] = lambda _: None,
        report: Reporter = report_nothing,
    ) -> None:
        self._held, self._spec, self._mailbox, self._children = held, spec, mailbox, children
        self._on_ready, self._report = on_ready, report
        self._listening = listening
        self.group = WorkerGroup(
            StartOrder(
                command=filled_command(spec.command, spec.port_argument, held.own.lease, held.ports),
                environment=worker_environment(spec.environment, held.own.lease, held.ports, with_token=spec.pass_token)
                | {MARK: children.mark},
                marker=("ALLOCATOR_FENCE", str(held.own.lease.fence)),
                directory=spec.directory,
                capture=spec.captured,
                listening=dict(zip(held.ports, listening, strict=False)),
            ),
            children,
        )
        self._output = Output(self.group.pipes, prefix)
        self._health = Health(
            time.monotonic(), spec.health_interval_s, spec.give_up_after_s, start_timeout_s=spec.start_timeout_s
        )
        watches = [PortWatch(port, self.group.members) for port in held.ports.values()]
        listens = spec.ready is not ReadyWhen.STARTED
        self._checks = HealthCheck(self._health, held.port, watches, spec.health_path, listens=listens)
        self._asked: Command | None = None
        self._leaves: Command | None = None
        self._leaves_at = 0.0
        self._given_up = ""
        self.suspended = threading.Event()
        """Set when it stands still because it was asked to."""

    def __repr__(self) -> str:
        return f"<WorkerStart {self._held.worker} on {self._held.where}, {self._health.state}>"

    @property
    def pid(self) -> int:
        """The worker's first process."""
        return self.group.pid

    def run(self) -> Ended:
        """Watch the worker until it has ended, and return how."""
        try:
            self._watch()
            self._explain_background()
        finally:
            self._checks.close()
            left = self._clear()
        had_terminal = self.group.has_terminal
        # Taken in before the output is finished: a process that nothing can end may hold a pipe for ever.
        code = 0 if left else self.group.finish()
        self._output.finish(OUTPUT_WAIT_S)
        status = 128 - code if code < 0 else code
        how = self._given_up or (f"ended by signal {-code}" if code < 0 else f"exit code {code}")
        return Ended(
            status=status,
            refused=self._refused(status),
            asked=self._asked,
            lost=self._held.lost,
            was_well=self._health.was_well(time.monotonic()),
            given_up=bool(self._given_up),
            left=left,
            had_terminal=had_terminal,
            how=how,
            why=self._with_last_message(how),
        )

    # -- while it runs --

    def _watch(self) -> None:
        while not (self.group.has_ended() or self._held.lost or self._asked or self._given_up):
            self._wait()
            self.group.watch_strays()
            for order in self._mailbox.take():
                self._obey(order)
            if self._leaves and time.monotonic() >= self._leaves_at:
                self._asked = self._asked or self._leaves
            if self._held.draining and not self._asked and self._leaves is not Command.STOP:
                self._report(
                    f"host {self._held.own.host} is draining: stopping {self._held.worker}", self._held.own.lease
                )
                self._leave(Command.STOP)
            if not self._asked and not self._leaves:
                self._check(time.monotonic())

    def _explain_background(self) -> None:
        """Report what is wrong with a command that ended well and left its server in the background."""
        if self._asked or self._given_up or self._held.lost or self.group.status() != 0:
            return
        left = self.group.members()
        if not left:
            return
        rows = [one for one in listeners(self._held.port, self._held.port) if one.pid in left]
        pid = rows[0].pid if rows else left[0]
        doing = f"listens on port {self._held.port}" if rows else "runs"
        self._report(
            f"{self._held.worker}: the command ended with exit code 0 and left process {pid} "
            f"({command_name(pid or 0) or '?'}), which {doing} in the background; it is ended too: let the command "
            "stay in the foreground (without its daemon option, with exec in a script)",
            self._held.own.lease,
            level=WARNING,
        )

    def _obey(self, order: Order) -> None:
        if isinstance(order, Passed):
            self.group.signal(order.number)
        elif order is Command.SUSPEND:
            self._suspend()
        elif order is Command.RESUME:
            self._health.resumed(time.monotonic())
        elif order in {Command.STOP, Command.RESTART}:
            self._leave(order)
        elif order is not Command.LOOK:
            self._asked = order

    def _leave(self, order: Command) -> None:
        """End the worker after `--drain-delay`, so that readers of addresses have seen that it is draining."""
        if self._health.state is LeaseState.STARTING or not self._spec.drain_delay_s:
            self._asked = order
            return
        self._update(state=LeaseState.DRAINING)
        if self._leaves is None:
            self._checks.close()
            self._leaves_at = time.monotonic() + self._spec.drain_delay_s
        if self._leaves is not Command.STOP:
            self._leaves = order

    def _suspend(self) -> None:
        """Mark the lease as degraded before this process is stopped by Ctrl-Z."""
        self.group.stop()
        self._checks.close()
        if self._health.suspended(time.monotonic()):
            self._update(state=LeaseState.DEGRADED, last_error="stopped at its terminal (Ctrl-Z)")
            until = time.monotonic() + SUSPEND_S
            while self._held.own.rewrite and time.monotonic() < until:
                time.sleep(FIRST_LOOK_S)
        self.suspended.set()

    def _wait(self) -> None:
        now = time.monotonic()
        probe = self._checks.probe
        until = min(self._health.next_at if probe is None else probe.deadline, now + LONGEST_WAIT_S)
        if self._leaves:
            until = min(until, self._leaves_at)
        poller = select.poll()
        poller.register(self._mailbox.descriptor, select.POLLIN)
        if self.group.descriptor is not None:
            poller.register(self.group.descriptor, select.POLLIN)
        else:
            until = min(until, now + SLOWEST_LOOK_S)
        if probe is not None:
            poller.register(probe.descriptor, probe.events)
        poller.poll(max(0.0, until - now) * 1_000)

    def _check(self, now: float) -> None:
        is_due = self._checks.is_due(now)
        if is_due and self.group.is_stopped():
            self._children.wake()  # the main thread knows what to do about a terminal
            self._follow(self._health.bad(now, "it was stopped by a signal; let it go on with kill -CONT"), now)
            return
        was = self._health.shared
        verdict = self._checks.step(now)
        if self._health.shared != was:
            self._check_sharing(was)
        self._follow(verdict, now)
        since = self._checks.stranger_since
        if is_due and since is not None and now - since >= STRANGER_GRACE_S:
            self._given_up = STRANGER

    def _check_sharing(self, was: str) -> None:
        """Report another process that listens on one of its ports as well: it gets some of the connections."""
        if self._health.shared and not was:
            self._report(f"{self._held.worker}: {self._health.shared}", self._held.own.lease, level=WARNING)
            self._held.record(self._health.shared)
        elif not self._health.shared:
            self._report(f"{self._held.worker} has port {self._held.port} for itself again", self._held.own.lease)

    def _follow(self, verdict: Verdict, now: float) -> None:
        if verdict is Verdict.READY:
            first = self._health.ready_at == now
            self._update(state=LeaseState.READY)
            if first:
                self._on_ready(now - self._health.started_at)
        elif verdict is Verdict.DEGRADED:
            self._update(state=LeaseState.DEGRADED, last_error=self._health.why)
        elif verdict is Verdict.GIVE_UP and self._health.ready_at is None and self._health.never_listened:
            self._given_up = f"it did not listen on port {self._held.port} within {self._spec.start_timeout_s:g} s"
        elif verdict is Verdict.GIVE_UP:
            self._given_up = f"no good answer for {self._health.bad_for(now):.1f} s ({self._health.why})"

    def _update(self, **fields: object) -> None:
        with contextlib.suppress(ValueError):  # it is draining: no other state follows
            self._held.update(**fields)

    # -- the end --

    def _clear(self) -> list[int]:
        """End every process of the worker; return those that nothing could end."""
        if self._asked in STOPS:
            self._update(state=LeaseState.DRAINING)
            for passed in self._listening:  # the worker has its own: once it closes that one, nobody is let in any more
                passed.close()
        timeout_s = 0.0 if self._asked is Command.KILL else self._spec.stop_timeout_s
        ends_at = time.monotonic() + timeout_s
        if self._asked is Command.LEAVE:  # it got one already: a second signal means "at once" to many programs
            self._until_empty(time.monotonic() + timeout_s / 2)
        elif timeout_s and self._spec.stop_path and not self.group.has_ended():
            self._ask_to_stop(ends_at)
        if self.group.members() and timeout_s and self._asked is not Command.KILL:
            self.group.terminate()
            self._until_empty(ends_at)
        if self.group.members():
            self.group.signal(9)
            self._until_empty(time.monotonic() + KILL_WAIT_S, hurry=False)
        return self.group.members()

    def _until_empty(self, until: float, *, hurry: bool = True) -> None:
        pause_s = FIRST_LOOK_S
        poller = select.poll()
        poller.register(self._mailbox.descriptor, select.POLLIN)
        while self.group.members() and (left_s := until - time.monotonic()) > 0:
            poller.poll(min(pause_s, left_s) * 1_000)
            pause_s = min(pause_s * 2, SLOWEST_LOOK_S)
            if self._hurried() and hurry:
                return

    def _hurried(self) -> bool:
        for order in self._mailbox.take():
            if isinstance(order, Passed):
                self.group.signal(order.number)
            elif order is Command.KILL:
                self._asked = order
            elif order in STOPS:
                self._asked = Command.STOP
                self._update(state=LeaseState.DRAINING)
            elif order is Command.SUSPEND:
                self.group.stop()
                self.suspended.set()
        return self._asked is Command.KILL

    def _ask_to_stop(self, ends_at: float) -> None:
        """`POST` to the stop path; SIGTERM follows when it was answered, or half of the time is over."""
        now = time.monotonic()
        seen = self._checks.look()
        if seen.owner is not Owner.WORKER or seen.address is None:
            return
        deadline = now + (ends_at - now) / 2
        probe = Probe(seen.address, self._held.port, self._spec.stop_path, deadline, method="POST")
        try:
            while (left_s := deadline - time.monotonic()) > 0 and not self.group.has_ended():
                poller = select.poll()
                poller.register(probe.descriptor, probe.events)
                poller.register(self._mailbox.descriptor, select.POLLIN)
                poller.poll(min(left_s, SLOWEST_LOOK_S) * 1_000)
                if self._hurried() or probe.advance() is not None:
                    return
        finally:
            probe.close()

    def _refused(self, status: int) -> int | None:
        """Return the port that it could not bind because another process listens there, or None."""
        if self._asked or self._held.lost or self._health.ready_at is not None:
            return None
        if self._checks.stranger_since is not None and self._given_up:
            return self._held.port
        if not status:
            return None
        ports = list(self._held.ports.values())
        in_use = [port for port in ports if reports_in_use(self._output.last_errors, port)]
        if (not in_use and status != SERVER_FAILED) or self._is_closing(in_use):
            return None
        if len(in_use) == 1:
            return in_use[0]
        # It did not state which of several, or only by its status that it could not listen: the kernel knows.
        taken = (port for port in ports if PortWatch(port, self.group.members).look().owner is Owner.STRANGER)
        return next(taken, in_use[0] if in_use else None)

    def _is_closing(self, refused: list[int]) -> bool:
        """Return whether only closing connections use the port that it could not bind: then it starts there again."""
        closing = closing_ports(refused)
        if closing:
            self._report(
                f"{self._held.worker}: port {min(closing)} has connections of its former start in TIME_WAIT, for up to "
                "a minute; let the worker set SO_REUSEADDR",
                self._held.own.lease,
            )
        return bool(closing)

    def _with_last_message(self, how: str) -> str:
        message = last_message(self._output.last_errors) if self._spec.output_in_events else ""
        return f"{how}: {message}" if message else how
