"""What an operation asks of whoever drives it. Each step is a value; its answer goes back into the generator.

The rule of this file: a step says what is wanted, never how. A step that waits, connects or sleeps does so in
its driver (`allocator/client`), so that the same operation runs blocking, async and under a test's hand.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from allocator.protocol.calls import Call, ScriptCall

if TYPE_CHECKING:
    from allocator.model.leases import Lease

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadListeners:
    """See which ports of a range a TCP socket listens on here; answered with their `frozenset`.

    Attributes:
        first: Lowest port of the range.
        last: Highest port of the range, included.
        fresh: Whether a listing of a moment ago will not do, as for a port that was asked for by its number.
    """

    first: int
    last: int
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class ProvePort:
    """Bind a port the way a worker will, and let it go; answered with whether that could be done.

    Attributes:
        port: 1-65535.
    """

    port: int


@dataclass(frozen=True, slots=True)
class DescribeListener:
    """Name who listens on a port here; answered with words such as `node (pid 4242)`, or None when nobody is seen.

    Attributes:
        port: 1-65535.
    """

    port: int


@dataclass(frozen=True, slots=True)
class AwaitTurn:
    """Say that a waiter is there, then wait until it is told to look; answered with whether it was told.

    Attributes:
        waiter: The key that says that it is there.
        said: What that key holds.
        turn: The key through which it is told.
        alive_ms: How long the first key lives.
        seconds: For how long to wait at most.
    """

    waiter: str
    said: str
    turn: str
    alive_ms: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AwaitEvent:
    """Wait until a stream has an event after one that is known; answered with the newest id that was seen, or None.

    Attributes:
        stream: The stream's key.
        after_id: The id of the last event that is known.
        seconds: Time to wait at most.
    """

    stream: str
    after_id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for some seconds.

    Attributes:
        seconds: How long.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Standing:
    """A live row in the database that has the host and port of a lease.

    Attributes:
        worker: Whose row it is, as `org/plugin#instance`.
        fence: Its fence, or None for a row that was written by hand.
    """

    worker: str
    fence: int | None


@dataclass(frozen=True, slots=True)
class WriteRow:
    """Write the row of a lease into the database; answered with None, or with the `Standing` row that is in the way.

    Attributes:
        lease: The lease, as it was just granted.
        over: A row in the way that was answered before, and whose lease is known to have ended.
    """

    lease: Lease
    over: Standing | None = None


Step: TypeAlias = ScriptCall | AwaitTurn | AwaitEvent | Pause | WriteRow | ReadListeners | ProvePort | DescribeListener
Operation: TypeAlias = Generator[Step, Any, T]


def ask(call: Call[T]) -> Operation[T]:
    """Run a script and return what it answered."""
    return call.decode((yield call.encode()))
