"""What a peer is: a way to lease one port of a range, what it gives up, and how its clients behave."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, ClassVar

TTL_S = 3_600
"""Long enough that nothing runs out while it is measured."""
STRIDE = 7_919
"""A prime that divides no size measured here, so that steps of it visit every port once."""


@dataclass(frozen=True)
class Traits:
    """What a peer does of what a lease of a port needs; a word or a clause each, as it stands in the table."""

    hosts: str
    ttl: str
    renewal: str
    fencing: str
    fairness: str
    bind_check: str
    tries: str


@dataclass(frozen=True)
class Ports:
    """A range of ports.

    Attributes:
        first: The lowest.
        size: How many.
    """

    first: int
    size: int

    def shuffled(self) -> list[int]:
        """Return all of them in an order that is random but the same every time: the order in which they are filled."""
        ports = list(range(self.first, self.first + self.size))
        random.Random(self.size).shuffle(ports)
        return ports


class OutOfTimeError(Exception):
    """A claim that could not be answered in the time that was left.

    Attributes:
        done: The part of the ports that was tried.
    """

    def __init__(self, done: float) -> None:
        super().__init__()
        self.done = done


class Client:
    """A process's way to a peer; made and used in one process only."""

    def ready(self, count: int) -> None:
        """Make what has to be there before up to `count` claims; not timed."""

    def claim(self, until: float) -> Any:
        """Return a lease, or None when all ports are taken.

        Args:
            until: When to give up, by `time.perf_counter`.

        Raises:
            OutOfTimeError: When it gave up.
        """
        raise NotImplementedError

    def release(self, lease: Any) -> None:
        """Give a lease back."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of everything; not timed."""


class Peer:
    """A way to lease ports.

    Args:
        url: The Redis, which is the same for all peers.
        ports: The range.
    """

    name: ClassVar[str]
    traits: ClassVar[Traits]
    ours: ClassVar[bool] = False
    on_redis: ClassVar[bool] = True
    most_clients: ClassVar[int] = 64

    def __init__(self, url: str, ports: Ports) -> None:
        self.url = url
        self.ports = ports
        self.filled = 0

    def prepare(self) -> None:
        """Define the range where the peer has such a thing."""
        raise NotImplementedError

    def fill(self, count: int) -> None:
        """Let `count` of the ports be leased, by writing what as many claims would have written."""
        raise NotImplementedError

    def client(self, number: int) -> Client:
        """Return a client of its own for a process."""
        raise NotImplementedError

    def close(self) -> None:
        """End what `prepare` started."""


class TryingClient(Client):
    """Tries one port after the other, from a random one on, until one is free: each is tried once."""

    def __init__(self, ports: Ports, number: int) -> None:
        self._ports = ports
        self._random = random.Random(number)

    def take(self, port: int) -> Any:
        """Return a lease of this very port, or None when it is taken."""
        raise NotImplementedError

    def claim(self, until: float) -> Any:
        first, size = self._ports.first, self._ports.size
        at = self._random.randrange(size)
        for tried in range(size):
            lease = self.take(first + at)
            if lease is not None:
                return lease
            at = (at + STRIDE) % size
            if time.perf_counter() > until:
                raise OutOfTimeError((tried + 1) / size)
        return None
