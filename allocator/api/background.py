"""What goes on beside requests: tasks that have to end when the server does, and calls that block, in threads.

The rule of this file: nothing here can hold up the end of the process. A task is cancelled until it has ended, for a
client of Redis may swallow one cancellation; a blocking call runs in a thread that is not waited for.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

AGAIN_S = 0.2
WITHIN_S = 2.0


async def end_tasks(tasks: Iterable[asyncio.Task[Any]], within_s: float = WITHIN_S) -> None:
    """Cancel tasks until they have ended, for `within_s` at most; what they raise is dropped."""
    loop = asyncio.get_running_loop()
    left, deadline = set(tasks), loop.time() + within_s
    while left and loop.time() < deadline:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)


async def in_thread(call: Callable[[], T]) -> T:
    """Return what a blocking call returns; one that hangs keeps neither the loop nor the process."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]  # without an error it is a T

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  # raised again where it is awaited
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="allocator-api-call", daemon=True).start()
    return await answer
