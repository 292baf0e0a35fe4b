"""The signatures of `wait`: a position in the queue of those who wait for a port."""

from __future__ import annotations

from typing import Any, ClassVar

from allocator.model.values import Value
from allocator.protocol import wire
from allocator.protocol.replies import NoPool, Reply
from allocator.protocol.wire import Call


class JoinCall(Call["Position | NoPool"], kw_only=True):
    """What takes a position in the queue, or keeps it.

    Attributes:
        ticket: Whose position it is.
        mode: What is done with it.
        host: Where the port is wanted.
        worker: Who waits.
        priority: 0 to 9, the highest first.
        position: The one that it had, or an empty text.
        port: The only port that will do (0: any, -1: a block of contiguous ones, -n: any n).
        condition: What it waits for (`any`, `one`, `block`), or what holds it back (`org`, `plugin`, `instances`,
            `worker`).
    """

    script: ClassVar[str] = "wait"

    ticket: str
    mode: str = "join"
    host: str
    worker: str
    priority: int
    position: str = ""
    port: int = 0
    condition: str

    def decode(self, raw: Any) -> Position | NoPool:  # noqa: ANN401  # as `Call.decode`
        """Return what the script answered."""
        reply = wire.reply_list(raw)
        if wire.text(reply[0]) == Reply.NO_POOL:
            return NoPool()
        ahead, look_ms, held = (wire.number(item) for item in reply[2:5])
        return Position(
            position=wire.text(reply[1]), ahead=int(ahead), look_ms=look_ms if look_ms >= 0 else None, held=int(held)
        )


class LeaveCall(Call[None], kw_only=True):
    """What gives up a position in the queue.

    Attributes:
        ticket: Whose position it is.
        mode: What is done with it.
        host: Where the port was wanted.
        worker: Who waited.
    """

    script: ClassVar[str] = "wait"

    ticket: str
    mode: str = "leave"
    host: str
    worker: str

    def decode(self, raw: Any) -> None:  # noqa: ANN401  # as `Call.decode`
        """Read the answer, which is empty."""
        wire.reply_list(raw)


class Position(Value, kw_only=True):
    """A position in the queue.

    Attributes:
        position: Its score, by which it is found again.
        ahead: How many are ahead that it may not overtake.
        look_ms: How long until one of those in front may be found gone, or None.
        held: How many are ahead, on whatever host, whom the same thing holds back.
    """

    position: str
    ahead: int
    look_ms: float | None
    held: int
