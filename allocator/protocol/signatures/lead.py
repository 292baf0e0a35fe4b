"""The signatures of `lead`, the leadership of a pool's reconcilers, and of `restore`, leases back from a database."""

from __future__ import annotations

from typing import Any, ClassVar

from allocator.model.values import Value, field
from allocator.protocol import wire
from allocator.protocol.replies import NoPool, Reply
from allocator.protocol.wire import Call


class LeadCall(Call["Leads | LedByOther"], kw_only=True):
    """What takes the leadership, or keeps it.

    Attributes:
        mode: What is done.
        token: The caller's proof.
        ttl_ms: How long it lives without being taken again.
        holder: Who the caller is, as text without quotes.
        known_fence: The highest fence of a leader that the caller has seen.
    """

    script: ClassVar[str] = "lead"

    mode: str = "take"
    token: str = field(repr=False)
    ttl_ms: int
    holder: str
    known_fence: int = 0

    def decode(self, raw: Any) -> Leads | LedByOther:  # noqa: ANN401  # as `Call.decode`
        """Return who leads."""
        reply = wire.reply_list(raw)
        if wire.text(reply[0]) == Reply.HELD:
            return LedByOther(holder=wire.text(reply[1]), remaining_ms=wire.number(reply[2]))
        return Leads(fence=int(wire.number(reply[1])))


class Leads(Value, kw_only=True):
    """The caller leads.

    Attributes:
        fence: The fence of its leadership.
    """

    fence: int


class LedByOther(Value, kw_only=True):
    """Somebody else leads.

    Attributes:
        holder: Who, as text.
        remaining_ms: How long it may still lead without a sign of life.
    """

    holder: str
    remaining_ms: float


class ResignCall(Call[bool], kw_only=True):
    """What gives up the leadership.

    Attributes:
        mode: What is done.
        token: The caller's proof.
    """

    script: ClassVar[str] = "lead"

    mode: str = "release"
    token: str = field(repr=False)
    ttl_ms: int = 0
    holder: str = ""
    known_fence: int = 0

    def decode(self, raw: Any) -> bool:  # noqa: ANN401  # as `Call.decode`
        """Return whether the caller did lead."""
        return wire.text(wire.reply_list(raw)[0]) == Reply.RELEASED


class RememberedLease(Value, kw_only=True):
    """A lease that a database remembers."""

    host: str
    port: int
    worker: str
    fence: int


class RestoreCall(Call["tuple[bool, ...] | NoPool"], kw_only=True):
    """What keeps the ports of remembered leases for their own workers.

    Attributes:
        ttl_ms: For how long.
        leases: At most 256.
    """

    script: ClassVar[str] = "restore"

    ttl_ms: int
    leases: tuple[RememberedLease, ...]

    def decode(self, raw: Any) -> tuple[bool, ...] | NoPool:  # noqa: ANN401  # as `Call.decode`
        """Return for each lease whether it was restored (False: Redis knows its port or worker by itself)."""
        codes = [wire.text(code) for code in wire.reply_list(raw)]
        if codes[0] == Reply.NO_POOL:
            return NoPool()
        if len(codes) != len(self.leases):
            raise wire.unreadable(f"the script {self.script}")
        return tuple(code == Reply.RESTORED for code in codes)
