"""The signatures of the scripts that end leases, and of `fail`, which writes down why a worker failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from allocator.protocol import decode
from allocator.protocol.calls import Call, ScriptCall, Words
from allocator.protocol.keys import script_keys
from allocator.protocol.replies import Reply

if TYPE_CHECKING:
    from allocator.model.leases import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedLease:
    """A lease that its holder ends.

    Attributes:
        port: Its port.
        token: The proof of holding it.
    """

    port: int
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndCall(Call["tuple[Ending, ...]"]):
    """What ends leases.

    Attributes:
        how: `released` (the ports rest for the pool's cooldown) or `declined` (the kernel refused them: quarantine).
        leases: At most 256, of one host or namespace of ports.
    """

    script: ClassVar[str] = "release"

    how: Literal["released", "declined"] = "released"
    leases: tuple[EndedLease, ...]

    def arguments(self) -> Words:
        """Return ARGV."""
        return tuple(word for one in self.leases for word in (one.port, one.token))

    def encode(self) -> ScriptCall:
        """Return the call as it goes to Redis."""
        script = "release" if self.how == "released" else "decline"
        return ScriptCall(script, script_keys(self.pool, self.space), self.arguments(), signature=self)

    def decode(self, raw: Any) -> tuple[Ending, ...]:  # noqa: ANN401  # as `Call.decode`
        """Return what became of each lease, in their order."""
        reply = decode.words(raw)
        return tuple(self._ending(reply[2 * i], reply[2 * i + 1]) for i in range(len(self.leases)))

    def _ending(self, code: object, detail: object) -> Ending:
        word = Reply(decode.text(code))
        if word in {Reply.RELEASED, Reply.DECLINED}:
            return Ended(fence=int(decode.number(detail)))
        if word is Reply.ALREADY:
            return Already()
        if word is Reply.NOT_YOURS:
            return NotYours(holder=decode.lease(self.pool, detail, remaining_ms=0, now_ms=0))
        raise decode.unreadable("the end of a lease")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """This call ended the lease.

    Attributes:
        fence: Its fence.
    """

    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Already:
    """The lease had ended before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotYours:
    """The port is held under another token; nothing was changed.

    Attributes:
        holder: That lease, without its end.
    """

    holder: Lease


Ending: TypeAlias = Ended | Already | NotYours


@dataclass(frozen=True, slots=True, kw_only=True)
class FailCall(Call[bool]):
    """What `fail` is sent.

    Attributes:
        port: The port of the lease.
        token: The proof of holding it.
        why: Why its worker failed, in one line.
    """

    script: ClassVar[str] = "fail"

    port: int
    token: str = field(repr=False)
    why: str

    def decode(self, raw: Any) -> bool:  # noqa: ANN401  # as `Call.decode`
        """Return whether it was written down (False: the lease is not the caller's any more)."""
        return decode.text(decode.words(raw)[0]) == Reply.CHANGED
