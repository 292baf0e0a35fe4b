"""`run`: one worker or many under one supervisor, each in a thread of its own, until the last one has ended.

This module passes signals on and waits for the ends of workers; what happens to a worker is decided in `worker`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from allocator.kernel.outlets import flush_outlets
from allocator.model.errors import AllocatorError
from allocator.model.log import ERROR, WARNING
from allocator.model.values import Value
from allocator.supervisor.children import Children, give_back_memory
from allocator.supervisor.signals import STOP_SIGNALS, Signals
from allocator.supervisor.spec import Reporter, report_nothing
from allocator.supervisor.terminal import TYPED, open_terminal
from allocator.supervisor.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.client.blocking import PortAllocator
    from allocator.client.lease_files import LeaseFiles
    from allocator.supervisor.spec import WorkerSpec

SETTLED_S = 2.0
"""After so long the imports and the first claims are over, and what they left free is given back."""

HURRY_S = 2.0
"""How long a second signal leaves for the release of the leases: longer than Redis takes, shorter than its time-out."""

ROLL_TIMEOUT_S = 60.0
"""How long a rolling restart waits for a worker to be ready before it stops."""


class Supervision(Value, kw_only=True):
    """How workers are run together.

    Attributes:
        together: Whether they are several: their lines carry their names, and SIGHUP restarts them one by one.
        orphans_end: Whether they are ended when the supervisor is killed.
        report: Prints one line for the person who watches.
        files: Where a hook of this user leaves its leases, to be taken over.
    """

    together: bool
    orphans_end: bool
    report: Reporter = report_nothing
    files: LeaseFiles | None = None


def run_workers(allocator: PortAllocator, specs: Sequence[WorkerSpec], supervision: Supervision) -> int:
    """Run workers on leased ports until they end or a signal ends them.

    Args:
        allocator: Holds the leases.
        specs: What to run; checked by `check_spec`.
        supervision: How they are run together.

    Returns:
        What the only worker exited with; of several, the first status that is not 0, else 0.

    Raises:
        AllocatorError: What ended the only worker; of several it is printed, and its exit code counts as a status.
    """
    of_one = len(specs) == 1
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        terminal = open_terminal(lends=of_one)
        if terminal is not None:
            stack.enter_context(terminal)
        children = stack.enter_context(
            Children(orphans_end=supervision.orphans_end, of_one=of_one, terminal=terminal, teller=signals.writer)
        )
        crew = _Crew(allocator, specs, supervision, children, signals)
        crew.start()
        crew.attend()
        return crew.status()


class _Crew:
    """The workers of one supervisor."""

    def __init__(
        self,
        allocator: PortAllocator,
        specs: Sequence[WorkerSpec],
        supervision: Supervision,
        children: Children,
        signals: Signals,
    ) -> None:
        self._supervision, self._signals, self._children = supervision, signals, children
        self._workers = [
            Worker(
                allocator,
                spec,
                children,
                supervision.report,
                files=supervision.files,
                prefix=_prefix(spec) if supervision.together else None,
            )
            for spec in specs
        ]
        self._statuses: dict[int, int] = {}
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._live, args=(at, worker), name=str(worker.id))
            for at, worker in enumerate(self._workers)
        ]
        self._over: list[int] = []
        self._stopping = False
        self._leave_at: float | None = None
        self._rolling = threading.Lock()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def attend(self) -> None:
        """Deal out signals until every worker has ended."""
        settled: float | None = time.monotonic() + SETTLED_S
        while len(self._over) < len(self._threads):
            due = min((at for at in (settled, self._leave_at) if at is not None), default=None)
            for number in self._signals.wait(None if due is None else max(0.0, due - time.monotonic())):
                self._deal(number)
            if self._leave_at is not None and time.monotonic() >= self._leave_at:
                self._leave()
            if settled is not None and time.monotonic() >= settled:
                settled = None
                give_back_memory()
        for thread in self._threads:
            thread.join()

    def status(self) -> int:
        """Return the exit status, or raise what ended the only worker."""
        if self._error is not None:
            raise self._error
        return next((status for _, status in sorted(self._statuses.items()) if status), 0)

    def _live(self, at: int, worker: Worker) -> None:
        try:
            self._statuses[at] = worker.run()
        except AllocatorError as error:
            if self._supervision.together:
                self._supervision.report(f"{worker.id}: {error}", level=ERROR)
                self._statuses[at] = getattr(error, "status", error.exit_code)
            else:
                self._error = error
        except BaseException as error:  # noqa: BLE001  # raised again in the main thread
            self._error = error
        finally:
            self._over.append(at)  # before the main thread is woken: it counts these
            self._signals.wake()

    def _deal(self, number: int) -> None:
        typed, number = number >= TYPED, number % TYPED
        if number == signal.SIGCHLD:
            self._children.reap()
            self._follow_stopped_worker()
        elif number in STOP_SIGNALS:
            is_to_pass = not typed and (number == signal.SIGQUIT or self._is_typed_here(number))
            if is_to_pass:
                self._pass_on(number)
            self._stop(number, notified=typed or is_to_pass)
        elif number == signal.SIGTSTP:
            self._suspend(number)
        elif number == signal.SIGCONT:
            self._resume()
        elif number == signal.SIGHUP and self._terminal_is_gone():
            self._pass_on(number)
            self._stop(number, notified=True)
        elif number == signal.SIGHUP and self._supervision.together:
            threading.Thread(target=self._roll, name="rolling restart", daemon=True).start()
        else:
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        for worker in self._workers:
            worker.forward_signal(number)

    def _stop(self, number: int, *, notified: bool) -> None:
        impatient = number == signal.SIGINT and self._children.terminal is not None  # somebody sits there: Ctrl-C
        for worker in self._workers:
            worker.stop(at_once=self._stopping, notified=notified, drains=not impatient, number=number)
        if self._stopping and self._leave_at is None:
            self._leave_at = time.monotonic() + HURRY_S
        self._stopping = True

    def _is_typed_here(self, number: int) -> bool:
        """Return whether a signal is Ctrl-C at a terminal that was lent to no worker: theirs as well, without us."""
        terminal = self._children.terminal
        return number == signal.SIGINT and terminal is not None and not terminal.is_lent and terminal.is_ours()

    def _terminal_is_gone(self) -> bool:
        return self._children.terminal is not None and self._children.terminal.is_gone()

    # -- job control --

    def _follow_stopped_worker(self) -> None:
        """Stand still together with the worker that has the terminal, or give it the terminal when it asks for it."""
        terminal = self._children.terminal
        if terminal is None or not terminal.lends:
            return
        number = self._workers[0].stopped_by()
        if number is None:
            return
        if number in {signal.SIGTTIN, signal.SIGTTOU} and terminal.is_ours():
            self._workers[0].resume(lend=True)
        elif terminal.is_lent or number != signal.SIGSTOP:
            self._suspend(number)

    def _suspend(self, number: int) -> None:
        """Stop workers and supervisor, as Ctrl-Z in a shell does, until the shell continues them."""
        for worker in self._workers:
            worker.suspend()
        terminal = self._children.terminal
        if terminal is not None and number in {signal.SIGTTIN, signal.SIGTTOU} and terminal.is_ours():
            self._resume()  # the shell brought the job to the foreground meanwhile
            return
        if terminal is not None:
            terminal.take_back()
        self._signals.stop_own_group(number)
        self._resume()

    def _resume(self) -> None:
        terminal = self._children.terminal
        for worker in self._workers:
            worker.resume(lend=terminal is not None and terminal.lends and terminal.is_ours())

    def _leave(self) -> None:
        """End without the threads that hang: the guard kills what is left, and the leases end by their TTL."""
        self._supervision.report("ended at once; leases that could not be released end by their TTL", level=ERROR)
        flush_outlets()
        os._exit(128 + signal.SIGKILL)

    def _roll(self) -> None:
        """Restart the workers one after the other, each once the one before is ready."""
        if not self._rolling.acquire(blocking=False):
            self._supervision.report("a rolling restart is under way already", level=WARNING)
            return
        try:
            for worker in self._workers:
                if self._stopping or worker.over.is_set():
                    continue
                worker.restart()
                if not _becomes_ready(worker):
                    self._supervision.report(
                        f"{worker.id} is not ready again; the rolling restart stops here", level=ERROR
                    )
                    return
                worker.over.wait(worker.seen_after_s)
            self._supervision.report("the rolling restart is complete")
        finally:
            self._rolling.release()


def _becomes_ready(worker: Worker) -> bool:
    deadline = time.monotonic() + ROLL_TIMEOUT_S + worker.ends_after_s
    while time.monotonic() < deadline and not worker.over.is_set():
        if worker.ready.wait(0.2):
            return True
    return False


def _prefix(spec: WorkerSpec) -> str:
    return f"{spec.claim['org']}/{spec.plugin}#{spec.claim.get('instance', 0)} | "
