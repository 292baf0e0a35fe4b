"""Messages to a worker's thread, in a form that it can wait for together with its sockets."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from enum import Enum
from typing import Self

from allocator.model.values import Value


class Command(Enum):
    """The messages to a worker."""

    STOP = "stop"
    QUIT = "quit"
    """As STOP, without the delay in which others drop the worker: somebody waits for the end."""
    KILL = "kill"
    RESTART = "restart"
    LOOK = "look"
    LEAVE = "leave"
    """As STOP, for a worker that a terminal has ended already."""
    SUSPEND = "suspend"
    RESUME = "resume"


STOPS = frozenset({Command.STOP, Command.QUIT, Command.KILL, Command.LEAVE})
"""After these a worker is not started again."""


class Passed(Value):
    """A signal to be passed on.

    Attributes:
        number: Which.
    """

    number: int


Order = Command | Passed


class Mailbox:
    """Orders in the order in which they came; a descriptor is readable while there are any."""

    def __init__(self) -> None:
        self._orders: deque[Order] = deque()
        self._lock = threading.Lock()
        self._open = True
        self.descriptor, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._open = False
            os.close(self.descriptor)
            os.close(self._writer)

    def send(self, order: Order) -> None:
        """Leave an order; from any thread. Nobody reads it once the worker has ended."""
        with self._lock:
            self._orders.append(order)
            if self._open:
                with contextlib.suppress(BlockingIOError):  # it is readable already
                    os.write(self._writer, b"!")

    def take(self) -> list[Order]:
        """Return the orders that came since the last time."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4_096)
        taken: list[Order] = []
        while self._orders:
            taken.append(self._orders.popleft())
        return taken
