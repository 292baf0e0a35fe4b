"""What a claim's refusals mean: the sentence and the data of each error, and nothing that decides.

An error states what happened, to which host:port and worker, and what to do; `retry_after` states when trying again may
help.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from allocator.model.durations import format_duration
from allocator.model.errors import (
    AllocatorError,
    CordonedError,
    DatabaseUnavailableError,
    ExhaustedError,
    HeldError,
    HostConflictError,
    InvalidInputError,
    LimitError,
    PortRefusedError,
    RecoveringError,
    StoreUnavailableError,
)
from allocator.model.values import replace
from allocator.operations.steps import DescribeListener, ReadListeners
from allocator.protocol.signatures.claim import (
    Cordoned,
    Exhausted,
    HostConflict,
    Limited,
    NoneFree,
    Queued,
    Recovering,
    Taken,
)

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.model.pools import PoolSpec
    from allocator.operations.attempt import Attempt, ClaimRequest
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation, Standing
    from allocator.protocol.signatures.claim import Held, Refused

IN_THE_WAY = {
    "leased": "leased",
    "cooling": "cooling down",
    "quarantined": "in quarantine",
    "listening": "listened on by other programs",
    "closing": "with connections in TIME_WAIT",
    "reserved": "reserved for other plugins",
    "scattered": "free but not contiguous",
    "free": "free since a moment ago",
}
"""What keeps a port from being claimed, as an error counts it."""

BOUND_RETRY_S = 1.0
"""How often somebody who waits for a port looks whether the program that listens on it has ended."""


def refusal(
    context: Context, pool: PoolSpec, request: ClaimRequest, reply: NoneFree | Refused, *, waits: bool
) -> Operation[AllocatorError]:
    """Return the error that a reply to a claim means.

    Args:
        context: Who claims.
        pool: The pool's rules.
        request: What was asked for.
        reply: What the script answered.
        waits: Whether the caller waits in the queue already.
    """
    data: dict[str, Any] = {"host": context.host, "port": request.port, "worker": str(request.worker)}
    match reply:
        case Taken():
            return (yield from _taken(context, pool, request, reply, data, waits=waits))
        case Exhausted():
            return _exhausted(context, pool, reply, data)
        case NoneFree():
            return _none_free(context, pool, request, reply, data)
        case Cordoned():
            return CordonedError(
                f"host {context.host} is cordoned and gives out no new ports; "
                f"use another host, or 'allocator host uncordon {context.host}'",
                **data,
            )
        case HostConflict():
            return HostConflictError(
                f"another machine or container has live leases as host {context.host}; "
                "give this one a name of its own with --host or ALLOCATOR_HOST",
                **data,
            )
    raise TypeError(f"{type(reply).__name__} is not a refusal")


def _none_free(
    context: Context, pool: PoolSpec, request: ClaimRequest, reply: NoneFree, data: dict[str, Any]
) -> ExhaustedError:
    match reply:
        case Limited():
            return _limited(pool, request, reply, data)
        case Recovering(left_ms=left_ms):
            return RecoveringError(
                f"pool {pool.name} grants no port for another {format_duration(left_ms)}: Redis was restarted or "
                "replaced, and holders of ports that it may have forgotten are given the time to report them; "
                f"wait with --wait {format_wait(left_ms)}",
                **data | {"retry_after": left_ms / 1_000},
            )
        case Queued(ahead=ahead):
            return ExhaustedError(
                f"{ahead} {'other waits' if ahead == 1 else 'others wait'} for a port of pool {pool.name} on "
                f"{context.host}; wait in the queue with --wait 30s",
                **data,
            )
    raise TypeError(f"{type(reply).__name__} is not a reply of a claim")


def held(context: Context, request: ClaimRequest, reply: Held, *, why: str = "", advice: str = "") -> HeldError:
    """Return the error for a worker that has a lease already.

    Args:
        context: Who claims.
        request: What was asked for.
        reply: What the script answered.
        why: Who looks after that lease and what to do about it, where that is known.
        advice: What to add at the end.
    """
    holder = reply.holder
    where = f"{holder.worker} already has a lease on {holder.address}"
    ending = f"until {until(holder, reply.now_ms)}; release it there, or claim with another --instance"
    return HeldError(
        f"{where}, {why}" if why else f"{where} {ending}{advice}",
        holder=holder,
        host=context.host,
        port=request.port,
        worker=str(request.worker),
        retry_after=reply.remaining_ms / 1_000,
    )


def refused(lease: Lease, who: str | None, *, several: bool) -> PortRefusedError:
    """Return the error for a port that the kernel refused."""
    return PortRefusedError(
        f"port {lease.port} on {lease.host} was granted, but {who or 'another process'} has it bound; "
        f"it is in quarantine now: claim again to get {'other ports' if several else 'another port'}",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        retry_after=0.0,
    )


def closing(lease: Lease) -> HeldError:
    """Return the error for a port that only connections without a process keep from being bound."""
    return HeldError(
        f"port {lease.port} on {lease.host} has closed connections in TIME_WAIT, for up to a minute, of a server that "
        "does not set SO_REUSEADDR; wait with --wait 60s or omit --port",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        retry_after=BOUND_RETRY_S,
    )


def in_the_way(lease: Lease, who: str | None) -> PortRefusedError:
    """Return the error for a leased port that somebody listens on before its worker was started."""
    return PortRefusedError(
        f"port {lease.port} on {lease.host} is leased to {lease.worker}, but {who or 'a program'} listens on it; "
        "it was declined and is in quarantine: end that program, or use the port that is claimed instead",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        retry_after=0.0,
    )


def runs_under_former_name(lease: Lease, who: str | None) -> HeldError:
    """Return the error for a worker that runs on a port of the name that this machine had before."""
    return HeldError(
        f"{lease.worker} has port {lease.port} as host {lease.host}, as this machine was called before, and "
        f"{who or 'a program'} listens on it; end that program, then 'allocator release {lease.worker}', or go on as "
        f"before with --host {lease.host}",
        holder=lease,
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
    )


def listened_on(lease: Lease, who: str | None) -> str:
    """Return the sentence about who listens on a leased port while its worker claims it again."""
    return (
        f"port {lease.port} on {lease.host} is leased to {lease.worker}, and {who or 'a program'} listens on it; "
        "if that is not this worker, claim with --pre-start to get another port"
    )


def row_in_the_way(lease: Lease, standing: Standing) -> PortRefusedError:
    """Return the error of a claim whose host and port another worker's live row has; another port may do."""
    fence = "written by hand" if standing.fence is None else f"fence {standing.fence}"
    return PortRefusedError(
        f"port {lease.port} on {lease.host} was leased, but the database has a live row of {standing.worker} there "
        f"({fence}); see 'allocator reconcile --dry-run'",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        retry_after=0.0,
    )


def row_too_slow(lease: Lease) -> DatabaseUnavailableError:
    """Return the error of a claim whose lease ran out each time before its row was written."""
    return DatabaseUnavailableError(
        f"the row of {lease.worker} took longer each time than its lease of port {lease.port} on {lease.host} lives "
        f"({lease.ttl_ms / 1_000:g} s), which was given back; look what holds the database up, or give a longer --ttl",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
    )


def not_copied(lease: Lease) -> StoreUnavailableError:
    """Return the error for a grant that was given back because no replica has it."""
    return StoreUnavailableError(
        f"port {lease.port} on {lease.host} was granted, but no replica confirmed that it has the grant; it was given "
        f'back: look after the replicas of Redis, or set durability = "none" in pool {lease.pool}',
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
    )


def not_contiguous(leases: tuple[Lease, ...]) -> HeldError:
    """Return the error for a worker that has ports which do not follow each other, where that is asked for."""
    numbers = ", ".join(str(lease.port) for lease in leases)
    return HeldError(
        f"{leases[0].worker} has ports {numbers} on {leases[0].host}, which are not contiguous; release it, "
        "then claim again",
        host=leases[0].host,
        worker=str(leases[0].worker),
    )


def unfinished(request: ClaimRequest, host: str) -> HeldError:
    """Return the error for a worker whose other claims come in between again and again."""
    return HeldError(
        f"another claim for {request.worker} on {host} goes on; claim again", host=host, worker=str(request.worker)
    )


def _limited(pool: PoolSpec, request: ClaimRequest, reply: Limited, data: dict[str, Any]) -> LimitError:
    worker = request.worker
    limit = {
        "org": f"max_per_org: organisation {worker.org} may have {reply.most} leases",
        "plugin": f"max_per_plugin: plugin {worker.plugin} may have {reply.most} leases",
        "instances": f"max_instances: {worker.org}/{worker.plugin} may have {reply.most} workers",
    }.get(reply.kind, reply.kind)
    more = ", …" if len(reply.holders) < reply.live else ""
    some = f" ({', '.join(reply.holders)}{more})" if reply.holders else ""
    others = f", and {reply.waiting} {'waits' if reply.waiting == 1 else 'wait'} for the next" if reply.waiting else ""
    return LimitError(
        f"a limit of pool {pool.name} is reached: {limit}, and there are {reply.live}{some}{others}; "
        "release one, wait with --wait 30s, or raise it with 'allocator pool apply FILE'",
        kind=reply.kind,
        holders=reply.holders,
        **data,
    )


def _exhausted(context: Context, pool: PoolSpec, reply: Exhausted, data: dict[str, Any]) -> ExhaustedError:
    return ExhaustedError(
        _none_is_free(context, pool, reply, ""),
        **data | {"retry_after": None if reply.free_ms is None else reply.free_ms / 1_000},
    )


def counted(
    context: Context, pool: PoolSpec, attempt: Attempt, reply: Exhausted, error: AllocatorError
) -> Operation[AllocatorError]:
    """Return the error of a claim that ends without a port, with a count of what is in the way."""
    from allocator.operations import listing

    try:
        views = yield from listing.ports(pool.name, pool.namespace_of(context.host), quarantine=True)
    except AllocatorError:  # it may not read that, or Redis does not answer any more
        return error
    why = {one.port: one.why for one in views if one.why != "free"}
    if not context.elsewhere:
        listening: frozenset[int] = yield ReadListeners(pool.first, pool.last, fresh=True)
        why = dict.fromkeys(attempt.refused, "closing") | dict.fromkeys(listening, "listening") | why
    rest = "scattered" if attempt.request.contiguous else "reserved" if pool.bands or not pool.spill else "free"
    counts = Counter(why.get(port, rest) for port in range(pool.first, pool.last + 1))
    parts = ", ".join(f"{counts[key]} {name}" for key, name in IN_THE_WAY.items() if counts[key])
    return ExhaustedError(
        _none_is_free(context, pool, reply, parts),
        host=context.host,
        worker=str(attempt.request.worker),
        retry_after=error.retry_after,
    )


def _none_is_free(context: Context, pool: PoolSpec, reply: Exhausted, parts: str) -> str:
    free_ms = reply.free_ms
    sentence = f"no port of pool {pool.name} ({pool.first}-{pool.last}) is free on {context.host}"
    sentence += f": {parts}; " if parts else "; "
    if free_ms is None:
        return f"{sentence}none frees up by itself: end a program that 'allocator doctor' names, or enlarge the pool"
    return sentence + (
        f"the next can free up in {format_duration(free_ms)}: wait with --wait {format_wait(free_ms)}, "
        "or see who has them with 'allocator ls'"
    )


def _taken(
    context: Context, pool: PoolSpec, request: ClaimRequest, reply: Taken, data: dict[str, Any], *, waits: bool
) -> Operation[AllocatorError]:
    data["retry_after"] = None if reply.free_ms is None else reply.free_ms / 1_000
    where, free_ms = f"port {request.port} on {context.host}", reply.free_ms or 0.0
    if reply.why == "outside":
        return InvalidInputError(f"{where} is outside pool {pool.name} ({pool.first}-{pool.last}); choose one inside")
    if reply.why == "reserved":
        return HeldError(
            f"{where} is in the band of plugin {reply.owner}; choose a port outside, or omit --port",
            **data | {"retry_after": None},
        )
    if reply.why == "bound":
        who: str | None = None if context.elsewhere else (yield DescribeListener(request.port or 0))
        return HeldError(
            f"{where} is not leased, but {who or 'another process'} listens on it; "
            "end that process or omit --port to get another",
            # One who waits for it already goes on: a worker may give its lease back a moment before its socket.
            **data | {"retry_after": BOUND_RETRY_S if waits else None},
        )
    wait = format_wait(free_ms)
    if reply.holder is not None:
        ends_at = reply.holder.expires_at - min(free_ms, pool.grace_ms) / 1_000
        holder = replace(reply.holder, expires_at=ends_at)
        return HeldError(
            f"{where} is held by {holder.worker} until {until(holder, reply.now_ms)}; "
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


def until(lease: Lease, now_ms: float) -> str:
    """Return when a lease ends as `12:03:07 (11 s)`, in local time, by the server's clock."""
    moment = datetime.fromtimestamp(lease.expires_at, tz=UTC).astimezone()
    return f"{moment:%H:%M:%S} ({format_duration(lease.expires_at * 1_000 - now_ms)})"
