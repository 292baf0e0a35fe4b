"""Claim: one attempt to lease a port, from the listening ports of this host to the proven bind.

The order matters and must not change: read what strangers have bound, ask Redis, prove the port. A grant that the
kernel refuses is declined before the error is raised, so that an attempt leaves either a lease or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from allocator.model.durations import format_duration
from allocator.model.errors import (
    AllocatorError,
    ConfigurationError,
    CordonedError,
    ExhaustedError,
    HeldError,
    HostConflictError,
    InvalidInputError,
    LimitError,
    PortRefusedError,
    RecoveringError,
    StoreUnavailableError,
)
from allocator.model.leases import HOLDER_WORDS
from allocator.model.states import LeaseState
from allocator.operations.end import decline, release
from allocator.operations.pools import pool_rules
from allocator.operations.renew import renew
from allocator.operations.steps import DescribeListener, Operation, ProvePort, ReadListeners
from allocator.protocol import decode
from allocator.protocol.calls import ScriptCall
from allocator.protocol.keys import script_keys
from allocator.protocol.replies import Reply
from allocator.protocol.signatures.claim import ClaimCall, WantedPort

if TYPE_CHECKING:
    from collections.abc import Iterable

    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.model.pools import PoolSpec
    from allocator.operations.context import Context

MAX_ROUNDS = 300
BOUND_RETRY_S = 1.0
"""Bounds the rounds of `again`: a host's 65,535 ports at 256 a round, and room to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """What a worker asks for.

    Attributes:
        pool: The pool to claim from.
        worker: Who the lease is for.
        port: The only port that will do, or None for any.
        hint: The port that the environment names for this plugin, or None.
        ttl_ms: How long the lease lives without a heartbeat, or None for the pool's TTL.
        state: The state that the lease starts in.
        pid: The process that the lease is tied to, or None.
        pid_started: When it started; this and the next four are those of `Lease`.
        holder_pid: The process that looks after it.
        holder_started: When that one started.
        boot: The boot on which they run.
        namespaces: Their namespaces.
        labels: Free words of the holder.
        auto_instance: Whether the lowest free instance is taken in place of the worker's.
        priority: 0-9: who waits with a higher one comes first.
        ticket: The ticket of a waiter, or an empty string.
        token: The token to claim with; the same one claiming again gets the same lease. None makes a new one.
        supersede_fence: Fence of this worker's lease whose process is proven dead on this very host, or None.
        bound_already: Whether the worker itself listens on `port` already, so that the port is neither avoided nor
            proven; the caller has seen to that.
    """

    pool: str
    worker: WorkerId
    port: int | None = None
    hint: int | None = None
    ttl_ms: int | None = None
    state: LeaseState = LeaseState.STARTING
    pid: int | None = None
    pid_started: int | None = None
    holder_pid: int | None = None
    holder_started: int | None = None
    boot: str | None = None
    namespaces: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    auto_instance: bool = False
    priority: int = 0
    ticket: str = ""
    token: str | None = field(default=None, repr=False)
    supersede_fence: int | None = None
    bound_already: bool = False

    def holder_words(self) -> dict[str, Any]:
        """Return what the lease will say of its holder; an entry that is empty is not said."""
        return {name: getattr(self, name) for name in _REQUESTED_WORDS}


_REQUESTED_WORDS = tuple(name for name in HOLDER_WORDS if name in ClaimRequest.__slots__)


def claim(context: Context, request: ClaimRequest) -> Operation[Lease]:
    """Lease a port: one attempt.

    Returns:
        The lease, with its token and deadline.

    Raises:
        ExhaustedError: When no port can be had now (`retry_after` says when the next may be); CordonedError on a
            cordoned host.
        HeldError: When the explicit port or the worker is held by someone else.
        PortRefusedError: When the kernel refused the granted port; it was declined, so another attempt gets another.
        HostConflictError: When another machine has live leases under this host's name.
        InvalidInputError: When the port or the TTL is not of the pool.
    """
    token = request.token or context.new_token()
    pool, reply, copies, sent_at = yield from _answered(context, request, token)
    code = Reply(decode.text(reply[0]))
    if code is Reply.GRANTED:
        granted = _leased(pool, request, reply, token, sent_at)
        if pool.durability == "replica" and not copies:
            yield from release(context, [granted])
            raise not_copied(granted)
        return granted if request.bound_already else (yield from _proven(context, granted))
    if code is Reply.SAME:
        same = _leased(pool, request, reply, token, sent_at)
        return (yield from _kept(context, same, request))
    raise (yield from refusal(context, pool, request, code, reply))


def _answered(context: Context, request: ClaimRequest, token: str) -> Operation[tuple[PoolSpec, list[Any], int, float]]:
    """Return the pool, the reply that decides, how many replicas have it, and when it was asked for."""
    pool = yield from pool_rules(context, request.pool)
    if not _allowed(pool, request):  # by rules that may have been read long ago
        pool = yield from pool_rules(context, request.pool, fresh=True)
    for _ in range(MAX_ROUNDS):
        ttl_ms = pool.check_ttl_ms(request.ttl_ms)
        if request.port is not None:
            pool.check_port(request.port)
        listening = yield from listening_ports(context, pool, fresh=request.port is not None)
        if request.bound_already:
            listening -= {request.port}
        sent_at = context.clock()
        reply, copies = yield from asked(_call(context, pool, request, token, ttl_ms, listening))
        code = Reply(decode.text(reply[0]))
        if code in {Reply.NO_POOL, Reply.STALE_POOL}:
            pool = yield from pool_rules(context, request.pool, fresh=True)
        elif code is Reply.RECOVERING and decode.number(reply[1]) < 0:
            yield ScriptCall("recover", script_keys(pool.name))
        elif code is not Reply.AGAIN:
            return pool, reply, copies, sent_at
    raise ConfigurationError(f"pool {pool.name} changes faster than it can be read; try again")


def listening_ports(context: Context, pool: PoolSpec, *, fresh: bool = False) -> Operation[frozenset[int]]:
    """Return the ports of a pool that programs of this host listen on; of another host's nothing is known."""
    if context.elsewhere:
        return frozenset()
    found: frozenset[int] = yield ReadListeners(pool.first, pool.last, fresh=fresh)
    return found


def asked(call: ScriptCall) -> Operation[tuple[list[Any], int]]:
    """Return the reply to a claim, and how many replicas have what it wrote."""
    answer: Any = yield call
    if not call.replicas:
        return decode.words(answer), 0
    reply, copies = decode.words(answer)
    return decode.words(reply), int(decode.number(copies))


def not_copied(lease: Lease) -> StoreUnavailableError:
    """Return the error for a grant that was given back because no replica has it."""
    return StoreUnavailableError(
        f"port {lease.port} on {lease.host} was granted, but no replica confirmed that it has the grant; it was given "
        f'back: look after the replicas of Redis, or set durability = "none" in pool {lease.pool}',
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
    )


def _allowed(pool: PoolSpec, request: ClaimRequest) -> bool:
    ttl_ms = pool.ttl_ms if request.ttl_ms is None else request.ttl_ms
    return pool.ttl_min_ms <= ttl_ms <= pool.ttl_max_ms and (request.port is None or request.port in pool)


def _call(
    context: Context, pool: PoolSpec, request: ClaimRequest, token: str, ttl_ms: int, listening: Iterable[int]
) -> ScriptCall:
    worker = f"{request.worker.org}/{request.worker.plugin}#auto" if request.auto_instance else str(request.worker)
    return ClaimCall(
        pool=pool.name,
        space=context.space(pool),
        host=context.host,
        ttl_ms=ttl_ms,
        state=request.state,
        identity=context.full_identity,
        alive_ms=context.alive_ms,
        wanted=(WantedPort(worker=worker, token=token, extra=request.holder_words()),),
        strangers=frozenset(listening),
        hint=request.hint or 0,
        port=request.port or 0,
        superseded=request.supersede_fence or 0,
        ticket=request.ticket,
        replicas=1 if pool.durability == "replica" else 0,
    ).encode()


def _leased(pool: PoolSpec, request: ClaimRequest, reply: list[Any], token: str, sent_at: float) -> Lease:
    remaining_ms = decode.number(reply[3])
    return decode.lease(
        pool.name,
        reply[2],
        remaining_ms=remaining_ms,
        now_ms=decode.number(reply[1]),
        token=token,
        deadline=sent_at + remaining_ms / 1_000,
        asked=request.worker,
    )


def _proven(context: Context, lease: Lease) -> Operation[Lease]:
    try:
        free: bool = context.elsewhere or (yield ProvePort(lease.port))
    except AllocatorError:
        yield from decline(context, [lease])
        raise
    if free:
        return lease
    who: str | None = yield DescribeListener(lease.port)
    yield from decline(context, [lease])
    raise PortRefusedError(
        f"port {lease.port} on {lease.host} was granted, but {who or 'another process'} has it bound; "
        "it is in quarantine now: claim again to get another port",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        retry_after=0.0,
    )


def as_asked(lease: Lease, request: ClaimRequest) -> Lease:
    """Return the lease that a worker has already with what it says in a new claim: TTL, labels, its processes."""
    said = {name: value for name, value in request.holder_words().items() if value}
    return replace(lease, ttl_ms=request.ttl_ms or lease.ttl_ms, **said)


def _kept(context: Context, lease: Lease, request: ClaimRequest) -> Operation[Lease]:
    wanted = as_asked(lease, request)
    (outcome,) = yield from renew(context, [wanted], rewrite=wanted != lease)
    if outcome.lost:
        raise outcome.lost
    return outcome.lease


def refusal(
    context: Context, pool: PoolSpec, request: ClaimRequest, code: Reply, reply: list[Any]
) -> Operation[AllocatorError]:
    """Return the error that a refusal of a claim means."""
    data: dict[str, Any] = {"host": context.host, "port": request.port, "worker": str(request.worker)}
    if code in {Reply.EXHAUSTED, Reply.QUEUED, Reply.LIMITED, Reply.RECOVERING}:
        return _none_left(context, pool, request, code, reply, data)
    if code is Reply.HELD:
        holder = decode.lease(pool.name, reply[1], remaining_ms=decode.number(reply[2]), now_ms=decode.number(reply[3]))
        return HeldError(
            f"{request.worker} already has a lease on {holder.address} until {until(holder, reply[3])}; "
            "release it there, or claim with another --instance",
            holder=holder,
            **data | {"retry_after": decode.number(reply[2]) / 1_000},
        )
    if code is Reply.TAKEN:
        return (yield from _taken(context, pool, request, reply, data))
    if code is Reply.CORDONED:
        return CordonedError(
            f"host {context.host} is cordoned and gives out no new ports; "
            f"use another host, or 'allocator host uncordon {context.host}'",
            **data,
        )
    if code is Reply.HOST_CONFLICT:
        return HostConflictError(
            f"another machine or container has live leases as host {context.host}; "
            "give this one a name of its own with --host or ALLOCATOR_HOST",
            **data,
        )
    return ConfigurationError(f"Redis answered {code} to a claim; its scripts are of another version")


def _none_left(
    context: Context, pool: PoolSpec, request: ClaimRequest, code: Reply, reply: list[Any], data: dict[str, Any]
) -> AllocatorError:
    if code is Reply.EXHAUSTED:
        return _exhausted(context, pool, decode.number(reply[1]), data)
    if code is Reply.LIMITED:
        return _limited(pool, request, reply, data)
    if code is Reply.RECOVERING:
        left_ms = decode.number(reply[1])
        return RecoveringError(
            f"pool {pool.name} grants no port for another {format_duration(left_ms)}: Redis was restarted or replaced, "
            "and holders of ports that it may have forgotten are given the time to say so; "
            f"wait with --wait {format_wait(left_ms)}",
            **data | {"retry_after": left_ms / 1_000},
        )
    waiting = int(decode.number(reply[1]))
    return ExhaustedError(
        f"{waiting} {'other waits' if waiting == 1 else 'others wait'} for a port of pool {pool.name} on "
        f"{context.host}; join the line with --wait 30s",
        **data,
    )


def _limited(pool: PoolSpec, request: ClaimRequest, reply: list[Any], data: dict[str, Any]) -> AllocatorError:
    kind, most, live = decode.text(reply[1]), decode.text(reply[2]), decode.text(reply[3])
    holders = tuple(decode.text(reply[4]).split())
    worker = request.worker
    limit = {
        "org": f"max_per_org: organisation {worker.org} may have {most} leases",
        "plugin": f"max_per_plugin: plugin {worker.plugin} may have {most} leases",
        "instances": f"max_instances: {worker.org}/{worker.plugin} may have {most} workers",
    }.get(kind, kind)
    some = f" ({', '.join(holders)}{', …' if len(holders) < int(live) else ''})" if holders else ""
    waiting = int(decode.number(reply[5]))
    others = f", and {waiting} {'waits' if waiting == 1 else 'wait'} for the next" if waiting else ""
    return LimitError(
        f"a limit of pool {pool.name} is reached: {limit}, and there are {live}{some}{others}; "
        "release one, wait with --wait 30s, or raise it with 'allocator pool apply FILE'",
        kind=kind,
        holders=holders,
        **data,
    )


def _exhausted(context: Context, pool: PoolSpec, retry_ms: float, data: dict[str, Any]) -> AllocatorError:
    retry_after = retry_ms / 1_000 if retry_ms >= 0 else None
    when = (
        f"the next can free up in {format_duration(retry_ms)}"
        if retry_ms >= 0
        else "other programs have the ports that are not leased"
    )
    return ExhaustedError(
        f"no port of pool {pool.name} ({pool.first}-{pool.last}) is free on {context.host}; {when}: "
        f"wait with --wait {format_wait(max(retry_ms, 0))}, or see who has them with 'allocator ls'",
        **data | {"retry_after": retry_after},
    )


def _taken(
    context: Context, pool: PoolSpec, request: ClaimRequest, reply: list[Any], data: dict[str, Any]
) -> Operation[AllocatorError]:
    why, free_ms, now_ms = decode.text(reply[1]), decode.number(reply[3]), decode.number(reply[4])
    data["retry_after"] = free_ms / 1_000 if free_ms >= 0 else None
    where = f"port {request.port} on {context.host}"
    if why == "outside":
        return InvalidInputError(f"{where} is outside pool {pool.name} ({pool.first}-{pool.last}); choose one inside")
    if why == "reserved":
        return HeldError(
            f"{where} is in the band of plugin {decode.text(reply[2])}; choose a port outside, or omit --port",
            **data | {"retry_after": None},
        )
    if why == "bound":
        who: str | None = None if context.elsewhere else (yield DescribeListener(request.port or 0))
        return HeldError(
            f"{where} is not leased, but {who or 'another process'} listens on it; "
            "end that process or omit --port to get another",
            # One who waits for it already goes on: a worker may give its lease back a moment before its socket.
            **data | {"retry_after": BOUND_RETRY_S if request.ticket else None},
        )
    wait = format_wait(free_ms)
    if why == "leased":
        holder = decode.lease(pool.name, reply[2], remaining_ms=max(0.0, free_ms - pool.grace_ms), now_ms=now_ms)
        return HeldError(
            f"{where} is held by {holder.worker} until {until(holder, reply[4])}; "
            f"wait with --wait {wait} or omit --port",
            holder=holder,
            **data,
        )
    return HeldError(
        f"{where} was given back and is kept free for another {format_duration(free_ms)}; "
        f"wait with --wait {wait} or omit --port",
        **data,
    )


def format_wait(ms: float) -> str:
    """Return a `--wait` that is long enough for something that happens in `ms` milliseconds."""
    return f"{int(ms // 1_000) + 1}s"


def until(lease: Lease, now_ms: object) -> str:
    """Return when a lease ends as `12:03:07 (11 s)`, in local time, by the server's clock."""
    moment = datetime.fromtimestamp(lease.expires_at, tz=UTC).astimezone()
    left = format_duration(lease.expires_at * 1_000 - decode.number(now_ms))
    return f"{moment:%H:%M:%S} ({left})"
