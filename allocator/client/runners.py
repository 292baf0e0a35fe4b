"""The heartbeats of a process: a thread that carries out the plan (see `heartbeats`), and what both kinds share.

Both are a `HeartbeatRunner`: what they do is written there once; they differ in how they wait and are woken. The task
of an event loop is in `runners_aio`, for a command does not need asyncio.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic

from allocator.client.heartbeats import E_, HeartbeatPlan, HeldLease

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from allocator.client.counts import HolderCounts
    from allocator.client.session import Session
    from allocator.model.leases import Lease
    from allocator.operations.steps import Operation


EXIT_WAIT_S = 0.5
"""How long the end of a program waits for a renewal that is under way."""


class HeartbeatRunner(Generic[E_]):
    """Renews leases until they are removed; begins with the first of them.

    A process that is forked holds none of its parent's leases: its runner begins with none.

    Args:
        session: Who holds them.
        run: Drives an operation to its end.
    """

    _event: Callable[[], E_]
    _lock: AbstractContextManager[Any]

    def __init__(self, session: Session, run: Callable[[Operation[Any]], Any]) -> None:
        self._session, self._run = session, run
        self.begin()
        _all.add(self)

    def begin(self) -> None:
        """Hold nothing, as a new one does."""
        self._plan: HeartbeatPlan[E_] = HeartbeatPlan(self._session, self._lock)

    def begin_anew(self) -> None:
        """Hold nothing, in a child that was forked: the leases stay with the parent, and their copies show it."""
        for held in self.held:
            held.stay_with_parent(type(self)._event())  # noqa: SLF001  # this class's own
        self.begin()

    @property
    def held(self) -> list[HeldLease[E_]]:
        """The leases that are renewed."""
        return self._plan.held

    @property
    def counts(self) -> dict[str, HolderCounts]:
        """What became of them."""
        return self._plan.counts

    def add(self, lease: Lease) -> HeldLease[E_]:
        """Renew a lease from now on."""
        held = HeldLease(lease, type(self)._event(), type(self)._event())  # noqa: SLF001  # this class's own
        with self._lock:
            self._plan.add(held)
            self._start()
            self._wake()
        return held

    def update(self, held: HeldLease[E_], **fields: Any) -> None:  # noqa: ANN401  # those of HeldLease.set
        """Change fields of a lease; they are written at once."""
        with self._lock:
            held.set(**fields)
            self._plan.touch()
            self._wake()

    def remove(self, held: HeldLease[E_]) -> None:
        """Stop renewing a lease."""
        with self._lock:
            self._plan.remove(held)

    def stop_at_exit(self) -> None:
        """Stop renewing, because the program ends; leases that it still holds end by their TTL."""

    def _start(self) -> None:
        raise NotImplementedError

    def _wake(self) -> None:
        raise NotImplementedError


class HeartbeatThread(HeartbeatRunner[threading.Event]):
    """Renews leases from a daemon thread."""

    _event = threading.Event

    def begin(self) -> None:
        """Hold nothing, as a new one does."""
        self._lock = self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        super().begin()

    def close(self) -> None:
        """End the thread."""
        self._end(None)

    def stop_at_exit(self) -> None:
        """Stop renewing; a call that is under way is not waited for any longer than a healthy one takes."""
        self._end(EXIT_WAIT_S)

    def _end(self, timeout_s: float | None) -> None:
        with self._changed:
            self._closed = True
            self._wake()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _start(self) -> None:
        if self._thread is None or self._closed:
            self._closed = False
            self._thread = threading.Thread(target=self._beat, name="allocator-heartbeats", daemon=True)
            self._thread.start()

    def _wake(self) -> None:
        self._changed.notify()

    def _beat(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (seconds := self._plan.seconds_to_wait()) != 0.0:
                    self._changed.wait(seconds)
                if self._closed:
                    return
            try:
                self._run(self._plan.beat())
            except Exception as error:  # noqa: BLE001  # it concerns one call, and all leases depend on this thread
                with self._changed:
                    self._plan.fail(error)


_all: weakref.WeakSet[HeartbeatRunner[Any]] = weakref.WeakSet()


def _begin_all() -> None:
    for one in list(_all):
        one.begin_anew()


def _stop_all() -> None:
    for one in list(_all):
        one.stop_at_exit()


os.register_at_fork(after_in_child=_begin_all)
# The interpreter freezes daemon threads, perhaps with a lock that a block which is left after that would wait for.
atexit.register(_stop_all)
