"""The signatures of `renew`, and of `extend`: the same for heartbeats that have nothing new to report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from allocator.model.states import LeaseState
from allocator.model.values import Value, field, replace
from allocator.protocol import wire
from allocator.protocol.replies import NoPool, Reply
from allocator.protocol.wire import Arguments, Call

if TYPE_CHECKING:
    from allocator.model.leases import Lease

PROOF_LENGTH = 50
"""Characters of a fence and a token with a blank after each; what has other lengths is for `renew` to decide."""


class RenewedLease(Value, kw_only=True):
    """A lease as its holder has it.

    Attributes:
        port: Its port.
        token: The proof of holding it.
        fence: Its fence, as far as the holder knows.
        ttl_ms: How long it is to live from now.
        worker: Who it is for.
        mode: `set` writes what follows, `keep` leaves it as it is.
        state: Its state.
        extra: The fields that the holder sets, by name.
        failed: Why its worker failed, in one line, to be written down in the events; an empty text when it did not.
    """

    port: int
    token: str = field(repr=False)
    fence: int
    ttl_ms: int
    worker: str
    mode: str = "keep"
    state: LeaseState = LeaseState.READY
    extra: dict[str, Any] = field(default_factory=dict)
    failed: str = ""


class RenewCall(Call["Renewals | NoPool"], kw_only=True):
    """What `renew` is sent.

    Attributes:
        host: The host of the leases.
        identity: What it is known by; `-` when the caller does not know.
        leases: At most 256.
    """

    script: ClassVar[str] = "renew"

    host: str
    identity: str = "-"
    leases: tuple[RenewedLease, ...]

    def decode(self, raw: Any) -> Renewals | NoPool:  # noqa: ANN401  # as `Call.decode`
        """Return what the script answered."""
        reply = wire.reply_list(raw)
        if wire.text(reply[0]) == Reply.NO_POOL:
            return NoPool()
        now_ms, count = wire.time_ms(reply[0]), len(self.leases)
        outcomes = tuple(self._outcome(reply[2 * i + 1], reply[2 * i + 2], now_ms) for i in range(count))
        return Renewals(now_ms=now_ms, outcomes=outcomes, draining=len(reply) > 2 * count + 1)

    def _outcome(self, code: object, detail: object, now_ms: float) -> Outcome:
        item, about = Reply(wire.text(code)), wire.text(detail)
        if item is Reply.RENEWED:
            return Renewed(fence=int(wire.number(about)) if about else None)
        if item is Reply.REASSERTED:
            return Reasserted(fence=int(wire.number(about)))
        if item is not Reply.LOST:
            raise wire.unreadable(f"the script {self.script}")
        if about in {"released", "replaced", "forced"}:
            return Lost(why=about)
        holder = wire.lease(self.pool, about, remaining_ms=0, now_ms=now_ms)
        return Lost(why="held", holder=replace(holder, expires_at=(now_ms + holder.ttl_ms) / 1_000))


class Renewals(Value, kw_only=True):
    """What became of a batch of leases.

    Attributes:
        now_ms: The server's time.
        outcomes: One for each lease, in their order.
        draining: Whether the host is to be emptied: holders stop their workers and release.
    """

    now_ms: float
    outcomes: tuple[Outcome, ...]
    draining: bool


class Renewed(Value, kw_only=True):
    """The lease lives on.

    Attributes:
        fence: Its fence, where it is not the one that was sent: the reply to a re-assertion never arrived.
    """

    fence: int | None


class Reasserted(Value, kw_only=True):
    """Redis had lost the lease and has it again.

    Attributes:
        fence: Its new fence.
    """

    fence: int


class Lost(Value, kw_only=True):
    """The lease is not the caller's any more.

    Attributes:
        why: `released` (by its holder), `forced` (by an operator), `replaced` (a newer one had the port), or `held`.
        holder: The lease in the way, as if it had just been renewed; None for another reason.
    """

    why: str
    holder: Lease | None = None


Outcome: TypeAlias = Renewed | Reasserted | Lost


class Proof(Value, kw_only=True):
    """What proves a lease, in the fewest bytes.

    Attributes:
        port: Its port.
        fence: Its fence, of 16 digits.
        token: Its token, of 32.
    """

    port: int
    fence: int
    token: str = field(repr=False)

    @property
    def written(self) -> str:
        """As the port's grant begins."""
        return f"{self.fence} {self.token} "


class ExtendCall(Call["Extended | NoPool"], kw_only=True):
    """What `extend` is sent.

    Attributes:
        host: The host of the leases.
        ttl_ms: How long they are to live from now.
        leases: At most 256, each with a proof of `PROOF_LENGTH`; in ARGV one text with all proofs, then the ports.
    """

    script: ClassVar[str] = "extend"

    host: str
    ttl_ms: int
    leases: tuple[Proof, ...]

    def arguments(self) -> Arguments:
        """Return ARGV."""
        proofs = "".join([one.written for one in self.leases])
        return (self.host, self.ttl_ms, proofs, *[one.port for one in self.leases])

    def decode(self, raw: Any) -> Extended | NoPool:  # noqa: ANN401  # as `Call.decode`
        """Return what the script answered."""
        reply = wire.reply_list(raw)
        if wire.text(reply[0]) == Reply.NO_POOL:
            return NoPool()
        now_ms, draining, reap_due, *left = (wire.number(item) for item in reply)
        return Extended(now_ms=now_ms, draining=draining > 0, reap_due=reap_due > 0, left={int(at) - 1 for at in left})


class Extended(Value, kw_only=True):
    """What became of a batch of leases.

    Attributes:
        now_ms: The server's time.
        draining: Whether the host is to be emptied.
        reap_due: Whether the pool asks for a visit of its reaper.
        left: The places in the batch, from 0, of those that were not extended: `renew` decides about them.
    """

    now_ms: float
    draining: bool
    reap_due: bool
    left: set[int]
