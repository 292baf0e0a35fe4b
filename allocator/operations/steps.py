"""What an operation asks of whoever drives it. Each step is a value; its answer goes back into the generator.

The rule of this file: a step describes what to do, never how. A step that waits, connects or sleeps does so in
its driver (`allocator/client`), so that the same operation runs blocking, async and under a test's hand.
"""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from allocator.model.errors import ConfigurationError
from allocator.model.values import Value, field
from allocator.protocol.wire import ScriptCall

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId

T = TypeVar("T")


class ReadListeners(Value):
    """See which ports of a range a TCP socket listens on here; answered with their `frozenset`.

    Attributes:
        first: Lowest port of the range.
        last: Highest port of the range, included.
        fresh: Whether a listing of a moment ago will not do, as for a port that was asked for by its number.
    """

    first: int
    last: int
    fresh: bool = False


class ProvePorts(Value):
    """Bind ports the way a worker will, and let them go; answered with the `frozenset` of those that were refused.

    Attributes:
        ports: Each 1-65535.
    """

    ports: tuple[int, ...]


class DescribeListener(Value):
    """Name who listens on a port here; answered with a text such as `node (pid 4242)`, or None when nobody is seen.

    Attributes:
        port: 1-65535.
        lease: The lease of the port, where one is known: its worker is then named as the one who listens.
    """

    port: int
    lease: Lease | None = None


class AwaitTurn(Value):
    """Report that a waiter is there, then wait until it is woken; answered with whether it was woken.

    Attributes:
        waiter: The key that shows that it is there.
        reported: What that key holds.
        turn: The key through which it is woken.
        alive_ms: How long the first key lives.
        seconds: For how long to wait at most.
    """

    waiter: str
    content: str
    turn: str
    alive_ms: int
    seconds: float


class AwaitEvent(Value):
    """Wait until a stream has an event after one that is known; answered with the newest id that was seen, or None.

    Attributes:
        stream: The stream's key.
        after_id: The id of the last event that is known.
        seconds: Time to wait at most.
    """

    stream: str
    after_id: str
    seconds: float


class Pause(Value):
    """Do nothing for some seconds.

    Attributes:
        seconds: How long.
    """

    seconds: float


class Standing(Value):
    """A live row in the database that has the host and port of a lease.

    Attributes:
        worker: Whose row it is, as `org/plugin#instance`.
        fence: Its fence, or None for a row that was written by hand.
    """

    worker: str
    fence: int | None


class WriteRow(Value):
    """Write the row of a lease into the database; answered with None, or with the `Standing` row that is in the way.

    Attributes:
        lease: The lease, as it was just granted.
        over: A row in the way that was answered before, and whose lease is known to have ended.
    """

    lease: Lease
    over: Standing | None = None


class CheckRow(Value):
    """Make sure, before there is a lease, that a worker can have a row in the database; answered with None.

    Attributes:
        pool: The pool.
        worker: The worker.
    """

    pool: str
    worker: WorkerId


class ReadClosing(Value):
    """Report which of these ports no process has, only connections that are closing; answered with a frozenset of them.

    Attributes:
        ports: Ports that could not be bound.
    """

    ports: tuple[int, ...]


class StoreTokens(Value):
    """Write down the tokens of a claim before Redis is asked; answered with the tokens to claim with, in this order.

    They are other ones where a claim of the same worker was never finished: that one is taken up again.

    Attributes:
        pool: The pool.
        host: The host that will bind the ports.
        workers: Who the leases are for; empty where they have no name yet (`--instance auto`).
        tokens: New tokens, one for each.
    """

    pool: str
    host: str
    workers: tuple[WorkerId, ...]
    tokens: tuple[str, ...] = field(repr=False)


class StoreLeases(Value):
    """Write down the leases that a claim ends with, or that it ends with none; answered with whether it was its to end.

    It was not where another claim of the same worker, with the same tokens, came to its end first.

    Attributes:
        pool: As in `StoreTokens`, and so the next two.
        host: The host.
        workers: The workers.
        leases: The leases, or nothing when the claim has failed.
    """

    pool: str
    host: str
    workers: tuple[WorkerId, ...]
    leases: tuple[Lease, ...]


class Verdict(Enum):
    """What is known of the processes of a lease that stands in the way of a claim."""

    ALIVE = "alive"
    """They live, or nobody can tell."""
    DEAD = "dead"
    """Every one of them is proven dead."""
    LISTENING = "listening"
    """They are proven dead, but some program listens on the port."""
    ORPHAN = "orphan"
    """They are proven dead, but the worker that they left behind listens on the port, or a program that is not seen."""
    OURS = "ours"
    """The caller has the lease's token."""


class Judgement(Value):
    """The answer to `JudgeHolder`.

    Attributes:
        verdict: What is known.
        token: The lease's token, where the verdict is `OURS`.
        why: Who looks after the lease and what to do about it, for the error; or an empty text.
        is_spare: Whether a lease that is `OURS` may be given back when its worker asks for another port.
    """

    verdict: Verdict
    token: str = field(default="", repr=False)
    why: str = ""
    is_spare: bool = False


class JudgeHolder(Value):
    """Report what is known of the processes of a lease that stands in the way; answered with a `Judgement`.

    Attributes:
        holder: The lease, without its token.
        host: The host that the caller claims for; the lease's own where that is this machine's name of before.
    """

    holder: Lease
    host: str


class Warn(Value):
    """Show the caller a sentence about something that does not end the operation.

    Attributes:
        sentence: What happened, to what, what to do.
    """

    sentence: str


Step: TypeAlias = (
    ScriptCall
    | AwaitTurn
    | AwaitEvent
    | Pause
    | CheckRow
    | WriteRow
    | ReadListeners
    | ProvePorts
    | DescribeListener
    | ReadClosing
    | StoreTokens
    | StoreLeases
    | JudgeHolder
    | Warn
)
HOST_STEPS: frozenset[type] = frozenset(
    {ReadListeners, ProvePorts, DescribeListener, ReadClosing, StoreTokens, StoreLeases, JudgeHolder, Warn}
)
"""What this host answers at once."""
Operation: TypeAlias = Generator[Step, Any, T]


class LeaseRecorder(Protocol):
    """Writes the rows of leases; called from any thread. `allocator.DatabaseRecorder` is one."""

    def check(self, pool: str, worker: WorkerId) -> None:
        """Make sure that a worker can have a row, before it is given a lease; raises when it cannot."""
        ...

    def record(self, lease: Lease, *, over: Standing | None = None) -> Standing | None:
        """Write the row of a lease, or return the live row of another worker that has its place.

        Args:
            lease: The lease, as it was just granted.
            over: A row in the way that was returned before, and whose lease is known to have ended.
        """
        ...


def needed(recorder: LeaseRecorder | None) -> LeaseRecorder:
    """Return the recorder.

    Raises:
        ConfigurationError: When there is none.
    """
    if recorder is None:
        raise ConfigurationError(
            "record=True needs a database to write to; give the allocator recorder=DatabaseRecorder.open(URL)"
        )
    return recorder


def answer_about_a_row(recorder: LeaseRecorder, step: CheckRow | WriteRow) -> Standing | None:
    """Return what a step about the database asks for."""
    if isinstance(step, WriteRow):
        return recorder.record(step.lease, over=step.over)
    recorder.check(step.pool, step.worker)
    return None
