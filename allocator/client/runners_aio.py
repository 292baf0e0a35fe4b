"""The heartbeats of an event loop: a task that carries out the plan (see `runners`)."""

from __future__ import annotations

import asyncio
import contextlib

from allocator.client.runners import HeartbeatRunner


class HeartbeatTask(HeartbeatRunner[asyncio.Event]):
    """Renews leases from a task of the running event loop."""

    _event = asyncio.Event

    def begin(self) -> None:
        """Hold nothing, as a new one does."""
        self._lock = contextlib.nullcontext()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        super().begin()

    async def close(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._beat(), name="allocator-heartbeats")

    def _wake(self) -> None:
        self._changed.set()

    async def _beat(self) -> None:
        while True:
            self._changed.clear()
            seconds = self._plan.seconds_to_wait()
            if seconds != 0.0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), seconds)
                continue
            try:
                await self._run(self._plan.beat())
            except Exception as error:  # noqa: BLE001  # it concerns one call, and all leases depend on this task
                self._plan.fail(error)
