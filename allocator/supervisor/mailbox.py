"""Messages to a worker's thread, in a form that `poll` can wait for together with its sockets."""

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
    """As STOP, without the drain delay: a person at a terminal waits for the end."""
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
    """A queue of messages; its descriptor is readable while there are any."""

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
        """Add a message, from any thread; it is never read when the worker has ended."""
        with self._lock:
            self._orders.append(order)
            if self._open:
                with contextlib.suppress(BlockingIOError):  # it is readable already
                    os.write(self._writer, b"!")

    def take(self) -> list[Order]:
        """Remove and return all messages."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4_096)
        taken: list[Order] = []
        while self._orders:
            taken.append(self._orders.popleft())
        return taken
