"""The signature of `claim`: one port or several, all or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from allocator.model.states import LeaseState
from allocator.model.values import Value, field
from allocator.protocol import wire
from allocator.protocol.replies import CODES, Reply
from allocator.protocol.wire import UNKNOWN_AGE_MS, Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.model.leases import Lease


class WantedPort(Value, kw_only=True):
    """One port that is asked for.

    Attributes:
        worker: Who it is for: `org/plugin#instance`, or `org/plugin#auto` for the lowest free instance.
        token: 32 hexadecimal digits; the same ones claiming again get the same lease.
        extra: The fields that the holder sets, by name (`HOLDER_FIELDS`); empty ones are left out.
    """

    worker: str
    token: str = field(repr=False)
    extra: dict[str, Any] = field(default_factory=dict)


class ClaimCall(Call["ClaimReply"], kw_only=True):
    """The arguments of `claim`.

    Attributes:
        host: The host that will bind the ports.
        ttl_ms: How long the leases live without a heartbeat.
        state: The state that they start in.
        identity: What the host is known by: machine, boot, network namespace and perhaps its address.
        alive_ms: For how long it has run: since its machine started, or its container.
        wanted: One or several ports; the worker itself first.
        strangers: Ports that other programs have bound on the host.
        hint: The port that the environment names (0: none), for the first.
        port: The only port that will do (0: any), for one alone.
        superseded: Fence of the worker's lease whose process is proven dead (0: none), for one alone.
        ticket: The ticket of somebody who waits, or an empty text.
        contiguous: Whether several ports have to follow each other.
        look_from: The port to look on from, after `Again` (0: from the first).
        replicas: How many replicas have to have the grant, from `Call`.
    """

    script: ClassVar[str] = "claim"
    may_end_early: ClassVar[bool] = True

    host: str
    ttl_ms: int
    state: LeaseState = LeaseState.STARTING
    identity: str
    alive_ms: int = UNKNOWN_AGE_MS
    wanted: tuple[WantedPort, ...]
    strangers: frozenset[int] = frozenset()
    hint: int = 0
    port: int = 0
    superseded: int = 0
    ticket: str = ""
    contiguous: bool = False
    look_from: int = 0

    def decode(
        self,
        raw: Any,  # noqa: ANN401  # as `Call.decode`
        *,
        sent_at: float | None = None,
        process: int | None = None,
    ) -> ClaimReply:
        """Return what the script answered.

        Args:
            raw: The reply; with how many replicas have it, where that was asked for.
            sent_at: The caller's monotonic time before it asked, from which its copies' deadlines count.
            process: The pid of the caller, to whose process its copies belong.
        """
        reply, copies = wire.reply_list(raw), 0
        if self.replicas:
            reply, copies = wire.reply_list(reply[0]), int(wire.number(reply[1]))
        code = CODES[reply[0]]
        if code is Reply.GRANTED:
            return Granted(leases=self._leases(reply, sent_at, process), copies=copies)
        if code is Reply.SAME:
            return Same(leases=self._leases(reply, sent_at, process))
        if code not in _REFUSALS:
            raise wire.unreadable(f"the script {self.script}")
        return _REFUSALS[code](self, reply)

    def _leases(self, reply: list[Any], sent_at: float | None, process: int | None) -> tuple[Lease, ...]:
        now_ms, leases = wire.number(reply[1]), []
        for one, text, remaining in zip(self.wanted, reply[2::2], reply[3::2], strict=True):
            left_ms = wire.number(remaining)
            lease = wire.lease(
                self.pool,
                text,
                remaining_ms=left_ms,
                now_ms=now_ms,
                token=one.token,
                deadline=None if sent_at is None else sent_at + left_ms / 1_000,
                process=process,
            )
            leases.append(lease)
        return tuple(leases)


def _held(call: ClaimCall, reply: list[Any]) -> Held:
    left_ms, now_ms = wire.number(reply[2]), wire.number(reply[3])
    holder = wire.lease(call.pool, reply[1], remaining_ms=left_ms, now_ms=now_ms)
    return Held(holder=holder, remaining_ms=left_ms, now_ms=now_ms)


def _taken(call: ClaimCall, reply: list[Any]) -> Taken:
    why, owner, free_ms = wire.text(reply[1]), wire.text(reply[2]), known_ms(reply[3])
    now_ms = wire.number(reply[4])
    holder = None
    if why == "leased":
        holder = wire.lease(call.pool, reply[2], remaining_ms=free_ms or 0, now_ms=now_ms)
    return Taken(why=why, holder=holder, owner=owner if why == "reserved" else "", free_ms=free_ms, now_ms=now_ms)  # type: ignore[arg-type]  # the words of the script


def _limited(_call: ClaimCall, reply: list[Any]) -> Limited:
    kind, most, live, holders = (wire.text(one) for one in reply[1:5])
    waiting = int(wire.number(reply[5]))
    return Limited(kind=kind, most=int(most), live=int(live), holders=tuple(holders.split()), waiting=waiting)


def _recovering(_call: ClaimCall, reply: list[Any]) -> Recovering | RecoverFirst:
    left_ms = known_ms(reply[1])
    return RecoverFirst() if left_ms is None else Recovering(left_ms=left_ms)


def known_ms(text: object) -> float | None:
    """Return a number of milliseconds of a reply, or None where it shows that it is not known (-1)."""
    found = wire.number(text)
    return found if found >= 0 else None


class Granted(Value, kw_only=True):
    """The leases are the caller's.

    Attributes:
        leases: One for each port that was asked for, in that order, with their tokens.
        copies: How many replicas have the grant, where that was asked for.
    """

    leases: tuple[Lease, ...]
    copies: int = 0


class Same(Value, kw_only=True):
    """These tokens had the leases already; nothing was changed.

    Attributes:
        leases: As they are, in the order of what was asked for.
    """

    leases: tuple[Lease, ...]


class Held(Value, kw_only=True):
    """One of the workers has a live lease under another token, or elsewhere.

    Attributes:
        holder: That lease.
        remaining_ms: How long it still lives.
        now_ms: The server's time.
    """

    holder: Lease
    remaining_ms: float
    now_ms: float


class Taken(Value, kw_only=True):
    """The port that was asked for cannot be leased.

    Attributes:
        why: `leased`, `cooling`, `bound` (a stranger listens on it), `outside` the pool, or `reserved` for a plugin.
        holder: Its lease, where it is leased; until it is claimable, `expires_at` of it counts the grace too.
        owner: The plugin that it is reserved for, or an empty text.
        free_ms: How long until it is claimable, or None when that is not known.
        now_ms: The server's time.
    """

    why: Literal["leased", "cooling", "bound", "outside", "reserved"]
    holder: Lease | None
    owner: str
    free_ms: float | None
    now_ms: float


class NoneFree:
    """No port can be leased now; one may be later."""

    __slots__ = ()


class Exhausted(Value, NoneFree, kw_only=True):
    """Every port is leased, rests or is bound.

    Attributes:
        free_ms: How long until the next can free up, or None when that is not known.
    """

    free_ms: float | None


class Queued(Value, NoneFree, kw_only=True):
    """Other waiters are served first.

    Attributes:
        ahead: How many.
    """

    ahead: int


class Limited(Value, NoneFree, kw_only=True):
    """A limit of the pool is reached.

    Attributes:
        kind: `org`, `plugin` or `instances`.
        most: How many leases it allows.
        live: How many there are.
        holders: Some of the workers that have them.
        waiting: How many wait for the next.
    """

    kind: str
    most: int
    live: int
    holders: tuple[str, ...]
    waiting: int


class Recovering(Value, NoneFree, kw_only=True):
    """A fleet-wide pool grants nothing yet: its server may have lost leases.

    Attributes:
        left_ms: How long it still waits for their holders.
    """

    left_ms: float


class Cordoned(Value, kw_only=True):
    """The host gives out no new ports."""


class HostConflict(Value, kw_only=True):
    """Another machine goes by the host's name.

    Attributes:
        machine: What it is known by.
    """

    machine: str


class Stale(Value, kw_only=True):
    """The pool is not there, or its rules are not those that the caller read: read them again, and ask again."""


class RecoverFirst(Value, kw_only=True):
    """A recovery has to begin (`RecoverCall`) before the pool grants anything; then ask again."""


class Again(Value, kw_only=True):
    """Nothing was found within the bounds of one call, but it went forward: ask again.

    Attributes:
        look_from: Where to look on from.
    """

    look_from: int


Refused: TypeAlias = Taken | Cordoned | HostConflict
ClaimReply: TypeAlias = (
    Granted | Same | Held | Exhausted | Queued | Limited | Recovering | Refused | Stale | RecoverFirst | Again
)

_REFUSALS: dict[Reply, Callable[[ClaimCall, list[Any]], ClaimReply]] = {
    Reply.HELD: _held,
    Reply.TAKEN: _taken,
    Reply.EXHAUSTED: lambda _, reply: Exhausted(free_ms=known_ms(reply[1])),
    Reply.QUEUED: lambda _, reply: Queued(ahead=int(wire.number(reply[1]))),
    Reply.LIMITED: _limited,
    Reply.RECOVERING: _recovering,
    Reply.CORDONED: lambda *_: Cordoned(),
    Reply.HOST_CONFLICT: lambda _, reply: HostConflict(machine=wire.text(reply[1])),
    Reply.AGAIN: lambda _, reply: Again(look_from=int(wire.number(reply[1])) if len(reply) > 1 else 0),
    Reply.NO_POOL: lambda *_: Stale(),
    Reply.STALE_POOL: lambda *_: Stale(),
}
