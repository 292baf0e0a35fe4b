"""The heartbeats of a process: one thread, or one task of an event loop, that carries out the plan (see `heartbeats`).

A beat renews all held leases in one call for each pool, and lets the reaper visit a pool that asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic

from allocator.client.heartbeats import E_, HeartbeatPlan, HeldLease
from allocator.model.errors import AllocatorError
from allocator.operations import listing, renew

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from allocator.client.counting import HolderCounts
    from allocator.client.session import Session
    from allocator.model.leases import Lease
    from allocator.operations.renew import RenewOutcome
    from allocator.operations.steps import Operation


class Beat(Generic[E_]):
    """One beat: what is renewed, as it was when it was sent."""

    def __init__(self, session: Session, plan: HeartbeatPlan[E_]) -> None:
        self._plan = plan
        self._batch = plan.held
        self.sent = [held.lease for held in self._batch]
        rewrite = any(held.rewrite for held in self._batch)
        self.renewal = renew.renew(session.context, self.sent, rewrite=rewrite)

    @staticmethod
    def visits(outcomes: list[RenewOutcome]) -> list[Operation[Any]]:
        """Return the visits of the reaper that Redis asks for."""
        return [listing.reap(pool) for pool in {outcome.lease.pool for outcome in outcomes if outcome.reap_due}]

    def confirm(self, outcomes: list[RenewOutcome]) -> None:
        """Take in what became of those leases that are still held."""
        still = {id(held) for held in self._plan.held}
        kept = [i for i, held in enumerate(self._batch) if id(held) in still]
        self._plan.confirm([self._batch[i] for i in kept], [self.sent[i] for i in kept], [outcomes[i] for i in kept])


class HeartbeatThread:
    """Keeps leases alive from a daemon thread, which starts with the first of them.

    A process that is forked holds none of its parent's leases: it begins with none, and a thread of its own.

    Args:
        session: Who holds them.
        run: Drives an operation to its end.
    """

    def __init__(self, session: Session, run: Callable[[Operation[Any]], Any]) -> None:
        self._session, self._run = session, run
        self.begin()
        _all.add(self)

    def begin(self) -> None:
        """Hold nothing, as a new one does."""
        self._plan: HeartbeatPlan[threading.Event] = HeartbeatPlan(self._session)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def held(self) -> list[HeldLease[threading.Event]]:
        """The leases that are kept alive."""
        return self._plan.held

    @property
    def counts(self) -> dict[str, HolderCounts]:
        """What became of them."""
        return self._plan.counts

    def add(self, lease: Lease) -> HeldLease[threading.Event]:
        """Keep a lease alive from now on."""
        held = HeldLease(lease, threading.Event(), threading.Event())
        with self._changed:
            self._plan.add(held)
            if self._thread is None or self._closed:
                self._closed = False
                self._thread = threading.Thread(target=self._beat, name="allocator-heartbeats", daemon=True)
                self._thread.start()
            self._changed.notify()
        return held

    def update(self, held: HeldLease[threading.Event], **words: Any) -> None:  # noqa: ANN401  # those of HeldLease.set
        """Set what a lease says; it is written at once."""
        with self._changed:
            held.set(**words)
            self._plan.touch()
            self._changed.notify()

    def remove(self, held: HeldLease[threading.Event]) -> None:
        """Let a lease run out."""
        with self._changed:
            self._plan.remove(held)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _beat(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (seconds := self._plan.seconds_to_wait()) != 0.0:
                    self._changed.wait(seconds)
                if self._closed:
                    return
                beat = Beat(self._session, self._plan)
            try:
                with self._session.span("renew", *beat.sent) as span:
                    outcomes = span.renewed(self._run(beat.renewal))
            except Exception as error:  # noqa: BLE001  # it concerns one call, and all leases hang on this thread
                with self._changed:
                    self._plan.fail(error)
                continue
            for visit in beat.visits(outcomes):
                with contextlib.suppress(AllocatorError):
                    self._run(visit)
            with self._changed:
                beat.confirm(outcomes)


class HeartbeatTask:
    """The same as `HeartbeatThread` in a task of the running event loop."""

    def __init__(self, session: Session, run: Callable[[Operation[Any]], Awaitable[Any]]) -> None:
        self._session, self._run = session, run
        self.begin()
        _all.add(self)

    def begin(self) -> None:
        """Hold nothing, as a new one does."""
        self._plan: HeartbeatPlan[asyncio.Event] = HeartbeatPlan(self._session)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> list[HeldLease[asyncio.Event]]:
        """The leases that are kept alive."""
        return self._plan.held

    @property
    def counts(self) -> dict[str, HolderCounts]:
        """What became of them."""
        return self._plan.counts

    def add(self, lease: Lease) -> HeldLease[asyncio.Event]:
        """Keep a lease alive from now on."""
        held = HeldLease(lease, asyncio.Event(), asyncio.Event())
        self._plan.add(held)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._beat(), name="allocator-heartbeats")
        self._changed.set()
        return held

    def update(self, held: HeldLease[asyncio.Event], **words: Any) -> None:  # noqa: ANN401  # those of HeldLease.set
        """Set what a lease says; it is written at once."""
        held.set(**words)
        self._plan.touch()
        self._changed.set()

    def remove(self, held: HeldLease[asyncio.Event]) -> None:
        """Let a lease run out."""
        self._plan.remove(held)

    async def close(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _beat(self) -> None:
        while True:
            self._changed.clear()
            seconds = self._plan.seconds_to_wait()
            if seconds != 0.0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), seconds)
                continue
            beat = Beat(self._session, self._plan)
            try:
                with self._session.span("renew", *beat.sent) as span:
                    outcomes = span.renewed(await self._run(beat.renewal))
            except Exception as error:  # noqa: BLE001  # it concerns one call, and all leases hang on this task
                self._plan.fail(error)
                continue
            for visit in beat.visits(outcomes):
                with contextlib.suppress(AllocatorError):
                    await self._run(visit)
            beat.confirm(outcomes)


_all: weakref.WeakSet[HeartbeatThread | HeartbeatTask] = weakref.WeakSet()


def _begin_all() -> None:
    for one in list(_all):
        one.begin()


os.register_at_fork(after_in_child=_begin_all)
