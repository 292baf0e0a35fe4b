"""The signature of `end`: leases that their holders release or decline, or that an operator ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from allocator.model.values import Value, field
from allocator.protocol import wire
from allocator.protocol.replies import CODES, Reply
from allocator.protocol.wire import Arguments, Call

if TYPE_CHECKING:
    from allocator.model.leases import Lease


How: TypeAlias = Literal["released", "declined", "forced"]


class EndedLease(Value, kw_only=True):
    """A lease that is to end.

    Attributes:
        port: Its port.
        token: The proof of holding it; for an operator the fence of the lease that was seen.
    """

    port: int
    token: str = field(repr=False)


class EndCall(Call["tuple[Ending, ...]"], kw_only=True):
    """What ends leases.

    Attributes:
        how: `released` (the ports rest for the pool's cooldown), `declined` (the kernel refused them: quarantine), or
            `forced` (an operator asked for it).
        leases: At most 256, of one host or namespace of ports.
        by: Who forces it; sent with `forced` only.
        reason: Why.
    """

    script: ClassVar[str] = "end"

    how: How = "released"
    leases: tuple[EndedLease, ...]
    by: str = ""
    reason: str = ""

    def arguments(self) -> Arguments:
        """Return ARGV."""
        pairs = [item for one in self.leases for item in (one.port, one.token)]
        return (self.how, *pairs, self.by, self.reason) if self.how == "forced" else (self.how, *pairs)

    def decode(self, raw: Any) -> tuple[Ending, ...]:  # noqa: ANN401  # as `Call.decode`
        """Return what became of each lease, in their order."""
        reply = wire.reply_list(raw)
        if len(reply) != 2 * len(self.leases):
            raise wire.unreadable(f"the script {self.script}")
        return tuple(map(self._ending, reply[::2], reply[1::2]))

    def _ending(self, code: object, detail: object) -> Ending:
        item = CODES[code]
        if item is Reply.RELEASED or item is Reply.DECLINED:
            return Ended(fence=int(wire.number(detail)))
        if item is Reply.ALREADY:
            return Already()
        if item is Reply.NOT_YOURS:
            return NotYours(holder=wire.lease(self.pool, detail, remaining_ms=0, now_ms=0))
        raise wire.unreadable("the end of a lease")


class Ended(Value, kw_only=True):
    """This call ended the lease.

    Attributes:
        fence: Its fence.
    """

    fence: int


class Already(Value, kw_only=True):
    """The lease had ended before."""


class NotYours(Value, kw_only=True):
    """The port is held under another token; nothing was changed.

    Attributes:
        holder: That lease, without its end.
    """

    holder: Lease


Ending: TypeAlias = Ended | Already | NotYours
