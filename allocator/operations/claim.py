"""Claim, the only way to a lease: ask the script, prove the port, store the lease, write its row.

Every caller makes a `ClaimRequest` and drives `claim`; callers differ only in the driver that answers its steps. An
`Attempt` is a value: each answer makes the next one. When a claim ends, also by an error or Ctrl-C, the caller has all
of its leases or Redis has none of them. If Redis does not answer and they cannot be released, they end by their TTL.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from allocator.model.errors import (
    AllocatorError,
    ConfigurationError,
    ExhaustedError,
    HeldError,
    InvalidInputError,
    PortRefusedError,
    StoreUnavailableError,
)
from allocator.model.names import WorkerId
from allocator.model.values import replace
from allocator.operations import end, refusals
from allocator.operations.attempt import Attempt, ClaimRequest, Waiting, further_token, named_workers
from allocator.operations.context import pool_rules
from allocator.operations.find import Here, find, is_here
from allocator.operations.steps import (
    CheckRow,
    DescribeListener,
    JudgeHolder,
    Judgement,
    Operation,
    Pause,
    ProvePorts,
    ReadClosing,
    ReadListeners,
    StoreLeases,
    StoreTokens,
    Verdict,
    Warn,
)
from allocator.protocol.signatures.claim import (
    Again,
    ClaimCall,
    Exhausted,
    Granted,
    Held,
    NoneFree,
    RecoverFirst,
    Same,
    Stale,
    WantedPort,
)
from allocator.protocol.signatures.pool import RecoverCall
from allocator.protocol.wire import WRONG_SHAPES, ask, unreadable

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.model.pools import PoolSpec
    from allocator.operations.context import Context
    from allocator.protocol.signatures.claim import Refused

MAX_ROUNDS = 300
"""Bounds the rounds of one question: a host's 65,535 ports at 256 a round, and room to spare."""
ORPHAN_WAIT_S = 2.0
"""How long a killed supervisor's guard may take to end the worker, whose port is still bound until then."""
LOOK_S = 0.02


def claim(context: Context, request: ClaimRequest) -> Operation[tuple[Lease, ...]]:
    """Lease one port or several, all or none.

    Returns:
        The leases, with their tokens and deadlines, in the order of the request's names.

    Raises:
        ExhaustedError: When no port was free in time (`retry_after` states when the next may be); CordonedError on a
            cordoned host.
        HeldError: When the explicit port or the worker is held by someone else.
        PortRefusedError: When the kernel, or another worker's row, refused the only port or too many.
        HostConflictError: When another machine has live leases under this host's name.
        InvalidInputError: When the port, the TTL or a name is not one of the pool.
    """
    attempt = first_attempt(context, request)
    yield from pool_rules(context, request.pool)
    if request.record:
        yield CheckRow(request.pool, request.worker)
    attempt = yield from _with_stored_tokens(context, attempt)
    leases: tuple[Lease, ...] = ()
    try:
        while True:
            pool, reply = yield from _ask_until_decided(context, attempt)
            match reply:
                case Granted(leases=leases) | Same(leases=leases):
                    leases, refused = yield from _prove_and_record(context, pool, attempt, reply)
                    if refused:
                        attempt = yield from _retry_when_refused(context, attempt, refused)
                    elif (yield from _store_leases(context, pool, attempt, leases)):
                        return leases
                    else:  # another claim with these tokens was undone
                        leases, attempt = (), (yield from _with_stored_tokens(context, first_attempt(context, request)))
                case Held():
                    attempt = yield from _retry_when_held(context, attempt, reply)
                case _:
                    attempt = yield from _retry_when_none_free(context, pool, attempt, reply)
    except GeneratorExit:  # nobody drives it any more
        raise
    except BaseException as error:
        yield from _undo(context, attempt, leases, error)
        raise


def first_attempt(context: Context, request: ClaimRequest) -> Attempt:
    """Return the first attempt, with new tokens where the request has none.

    Raises:
        InvalidInputError: When several ports cannot be claimed together so.
    """
    names = request.names
    if names and request.auto_instance:
        raise InvalidInputError("several ports are claimed for a worker that has a number; give it as --instance")
    token = request.token or context.new_token()
    return Attempt(
        request=request,
        workers=named_workers(request.worker, names) if names else (request.worker,),
        tokens=(token, *[further_token(token, name) for name in names[1:]]),
        deadline=context.clock() + request.wait_s,
        is_new=request.token is None,
        superseded=request.supersede_fence or 0,
    )


def _prove_and_record(
    context: Context, pool: PoolSpec, attempt: Attempt, reply: Granted | Same
) -> Operation[tuple[tuple[Lease, ...], AllocatorError | None]]:
    """Prove the ports and write the rows; return the leases, or none with the error that refused a port."""
    request, leases = attempt.request, reply.leases
    if refused := (yield from _refused(context, pool, attempt, reply)):
        return (), refused
    if isinstance(reply, Same):
        from allocator.operations import same

        leases = yield from same.as_asked(context, pool, request, leases)
    if request.record:
        from allocator.operations import record

        return (yield from record.with_rows(context, attempt, leases))
    return leases, None


def _store_leases(context: Context, pool: PoolSpec, attempt: Attempt, leases: tuple[Lease, ...]) -> Operation[bool]:
    """Store the leases through the driver; return False when another claim has released them meanwhile."""
    is_ended = yield StoreLeases(attempt.request.pool, context.host, _named(attempt), leases)
    return is_ended or not attempt.was_taken_up or (yield from _are_live(pool, leases))


def _named(attempt: Attempt) -> tuple[WorkerId, ...]:
    """Return the workers under whose names the tokens are stored; none while the instance is not known."""
    return () if attempt.request.auto_instance else attempt.workers


def _with_stored_tokens(context: Context, attempt: Attempt) -> Operation[Attempt]:
    """Let the driver store the tokens before Redis is asked, so that a killed claim can be continued."""
    if attempt.request.token is not None:
        return attempt
    stored: tuple[str, ...] = yield StoreTokens(attempt.request.pool, context.host, _named(attempt), attempt.tokens)
    return attempt if stored == attempt.tokens else replace(attempt, tokens=stored, was_taken_up=True)


def _ask_until_decided(
    context: Context, attempt: Attempt
) -> Operation[tuple[PoolSpec, Granted | Same | Held | NoneFree | Refused]]:
    """Run the claim script, with the present rules, until it decides; return the rules and the reply."""
    request, look_from = attempt.request, 0
    pool = yield from pool_rules(context, request.pool)
    if not _allows(pool, request):  # by rules that may have been read long ago
        pool = yield from pool_rules(context, request.pool, fresh=True)
    for _ in range(MAX_ROUNDS):
        ttl_ms = pool.check_ttl_ms(request.ttl_ms)
        if request.port is not None:
            pool.check_port(request.port)
        listening = yield from _listening(context, pool, request)
        sent_at = context.clock()
        call = _call(context, pool, attempt, ttl_ms, listening, look_from)
        raw = yield call.encode()
        try:
            reply = call.decode(raw, sent_at=sent_at, process=context.process())
        except WRONG_SHAPES as error:
            raise unreadable(f"the script {call.script}") from error
        match reply:
            case Granted() | Same():
                return pool, reply
            case Stale():
                pool = yield from pool_rules(context, request.pool, fresh=True)
            case RecoverFirst():
                yield from ask(RecoverCall(pool=pool.name))
            case Again():
                look_from = reply.look_from
            case _:
                return pool, reply
    raise ConfigurationError(f"pool {pool.name} changes faster than it can be read; try again")


def _allows(pool: PoolSpec, request: ClaimRequest) -> bool:
    ttl_ms = pool.ttl_ms if request.ttl_ms is None else request.ttl_ms
    return pool.ttl_min_ms <= ttl_ms <= pool.ttl_max_ms and (request.port is None or request.port in pool)


def _listening(context: Context, pool: PoolSpec, request: ClaimRequest) -> Operation[frozenset[int]]:
    """Return the ports of a pool that programs of this host listen on; of another host's nothing is known."""
    if context.elsewhere:
        return frozenset()
    found: frozenset[int] = yield ReadListeners(pool.first, pool.last, fresh=request.port is not None)
    return found - {request.port} if request.bound_already else found


def _call(
    context: Context, pool: PoolSpec, attempt: Attempt, ttl_ms: int, listening: frozenset[int], look_from: int
) -> ClaimCall:
    request = attempt.request
    auto = f"{request.worker.org}/{request.worker.plugin}#auto" if request.auto_instance else None
    return ClaimCall(
        pool=pool.name,
        namespace=pool.namespace_of(context.host),
        host=context.host,
        ttl_ms=ttl_ms,
        state=request.state,
        identity=context.full_identity,
        alive_ms=context.alive_ms,
        wanted=tuple(
            [
                WantedPort(worker=auto or str(worker), token=token, extra=dict(request.holder))
                for worker, token in zip(attempt.workers, attempt.tokens, strict=True)
            ]
        ),
        strangers=listening | attempt.refused,
        hint=request.hint or 0,
        port=request.port or 0,
        superseded=attempt.superseded,
        ticket=_ticket(attempt),
        contiguous=request.contiguous,
        look_from=look_from,
        replicas=1 if pool.durability == "replica" else 0,
    )


def _ticket(attempt: Attempt) -> str:
    """Return the waiter's ticket, or an empty text for one who does not wait."""
    return attempt.waiting.ticket if attempt.waiting else attempt.request.ticket


def _refused(
    context: Context, pool: PoolSpec, attempt: Attempt, reply: Granted | Same
) -> Operation[AllocatorError | None]:
    """Prove the ports of new leases; where the kernel refuses one, end them all and return the error.

    Raises:
        StoreUnavailableError: When no replica has a grant that replicas have to have.
    """
    leases = reply.leases
    if isinstance(reply, Granted) and pool.durability == "replica" and not reply.copies:
        raise refusals.not_copied(leases[0])
    if context.elsewhere or attempt.request.bound_already:
        return None
    if isinstance(reply, Same) and (attempt.was_taken_up or not attempt.is_new):  # its worker may run already
        from allocator.operations import same

        return (yield from same.listened_on(context, attempt.request, leases))
    refused: frozenset[int] = yield ProvePorts(tuple([lease.port for lease in leases]))
    if not refused:
        return None
    lost = [lease for lease in leases if lease.port in refused]
    who: str | None = yield DescribeListener(lost[0].port)
    if who is None:
        closing: frozenset[int] = yield ReadClosing(tuple(refused))
        if lost[0].port in closing:
            yield from end.end_apart(context, leases, [lease for lease in lost if lease.port not in closing])
            return refusals.closing(lost[0])
    yield from end.end_apart(context, leases, lost)
    return refusals.refused(lost[0], who, several=len(leases) > 1)


def _retry_when_held(context: Context, attempt: Attempt, reply: Held) -> Operation[Attempt]:
    """Return the next attempt where a lease is in the way: with its token, replacing a dead holder, or after a wait."""
    holder, request = reply.holder, attempt.request
    error = refusals.held(context, request, reply)
    here = Here.OTHER if holder.host == context.host else (yield from is_here(context, request.pool, holder.host))
    judgement = yield from _judged(context, holder, here, may_wait=not attempt.has_seen_orphan)
    if judgement.verdict in {Verdict.LISTENING, Verdict.ORPHAN}:
        attempt = replace(attempt, has_seen_orphan=True)
    if here is not Here.OTHER and judgement.verdict in {Verdict.OURS, Verdict.DEAD, Verdict.LISTENING}:
        return (yield from _retry_when_renamed(context, attempt, holder, judgement, error))
    match judgement.verdict:
        case Verdict.OURS if judgement.token not in attempt.tokens and not request.bound_already:
            return attempt.after_own(holder, judgement.token, error)
        case Verdict.OURS if request.port is None or judgement.is_spare:
            return (yield from _release_and_retry(context, attempt, holder, judgement.token, error))
        case Verdict.DEAD | Verdict.LISTENING:
            attempt = attempt.after_death(holder, error)
            if len(attempt.workers) > 1:
                yield from end_the_dead(context, holder)
            return attempt
        case Verdict.ORPHAN:
            advice = "; its supervisor is dead, but its worker still listens there"
            error = refusals.held(context, request, reply, advice=advice)
        case _:
            error = refusals.held(context, request, reply, why=judgement.why)
    return (yield from _wait_and_retry(context, attempt, error))


def _judged(context: Context, holder: Lease, here: Here, *, may_wait: bool) -> Operation[Judgement]:
    """Return what is known of the processes of a lease, once the guard of a killed supervisor had time to end them."""
    if here is Here.ENDED:
        return Judgement(Verdict.DEAD)
    step = JudgeHolder(holder, context.host if here is Here.OTHER else holder.host)
    judgement: Judgement = yield step
    until = context.clock() + ORPHAN_WAIT_S
    while may_wait and judgement.verdict in {Verdict.LISTENING, Verdict.ORPHAN} and context.clock() < until:
        yield Pause(LOOK_S)
        judgement = yield step
    if here is Here.OTHER and holder.host != context.host:  # a lease file that was copied proves nothing
        return Judgement(Verdict.ALIVE, why=judgement.why)
    return judgement


def _retry_when_renamed(
    context: Context, attempt: Attempt, holder: Lease, judgement: Judgement, error: HeldError
) -> Operation[Attempt]:
    """End a worker's lease under this machine's former name, unless it runs; return the next attempt."""
    listening: frozenset[int] = yield ReadListeners(holder.port, holder.port, fresh=True)
    if judgement.verdict is Verdict.OURS and listening and not attempt.request.pre_start:
        who: str | None = yield DescribeListener(holder.port)
        raise refusals.runs_under_former_name(holder, who)
    yield Warn(
        f"{holder.worker} had port {holder.port} as host {holder.host}, as this machine was called before; "
        "that lease is ended, and a port is claimed under its name of now"
    )
    if judgement.verdict is Verdict.OURS:
        return (yield from _release_and_retry(context, attempt, holder, judgement.token, error))
    if not (yield from end_the_dead(replace(context, host=holder.host), holder)):
        return (yield from _wait_and_retry(context, attempt, error))
    return attempt.after_death(holder, error)


def _release_and_retry(
    context: Context, attempt: Attempt, holder: Lease, token: str, error: HeldError
) -> Operation[Attempt]:
    """Release a lease that does not fit this request; return an attempt with new tokens."""
    yield from end.release(context, [replace(holder, token=token)])
    yield StoreLeases(attempt.request.pool, context.host, _named(attempt), ())
    anew = yield from _with_stored_tokens(context, first_attempt(context, replace(attempt.request, token=None)))
    return attempt.after_given_back(anew.tokens, error)


def end_the_dead(context: Context, lease: Lease) -> Operation[bool]:
    """End a lease whose processes are proven dead and whose token went with them; return whether this call did.

    Only the machine that the pool knows by this host's name may do that: Redis refuses others.

    Raises:
        StoreUnavailableError: When Redis does not answer.
    """
    request = ClaimRequest(pool=lease.pool, worker=lease.worker, port=lease.port, supersede_fence=lease.fence)
    try:
        _, reply = yield from _ask_until_decided(context, first_attempt(context, replace(request, bound_already=True)))
        if not isinstance(reply, Granted):  # its worker has claimed again, or the host is cordoned
            return False
        yield from end.release(context, reply.leases)
    except StoreUnavailableError:
        raise
    except AllocatorError:
        return False
    return True


def _wait_and_retry(context: Context, attempt: Attempt, error: AllocatorError) -> Operation[Attempt]:
    """Wait in the queue and return the next attempt; raise `error` when the caller does not wait, or not any longer."""
    if not attempt.may_wait_after(error, context.clock()):
        raise error
    from allocator.operations import queue

    waiting = attempt.waiting or Waiting.of(attempt.request, attempt.request.ticket or context.new_token()[:16])
    attempt = replace(attempt, waiting=waiting)
    waiting = yield from queue.wait_for_turn(context, waiting, error, deadline=attempt.deadline)
    return replace(attempt, waiting=waiting)


def _retry_when_refused(context: Context, attempt: Attempt, error: AllocatorError) -> Operation[Attempt]:
    """Return the next attempt after the kernel refused a port: for another port, or for this one after a wait."""
    if attempt.request.port is None or isinstance(error, PortRefusedError):
        return attempt.after_refusal(error)
    return (yield from _wait_and_retry(context, attempt, error))


def _retry_when_none_free(
    context: Context, pool: PoolSpec, attempt: Attempt, reply: NoneFree | Refused
) -> Operation[Attempt]:
    """Wait in the queue and return the next attempt, or raise an error that counts what holds the ports."""
    error = yield from refusals.refusal(context, pool, attempt.request, reply, waits=bool(_ticket(attempt)))
    try:
        return (yield from _wait_and_retry(context, attempt, error))
    except ExhaustedError as late:
        if isinstance(reply, Exhausted):
            raise (yield from refusals.counted(context, pool, attempt, reply, late)) from None
        raise


def _are_live(pool: PoolSpec, leases: tuple[Lease, ...]) -> Operation[bool]:
    """Return whether no other claim with the same tokens has given these leases back."""
    known = yield from find(pool, [lease.worker for lease in leases])
    return all(one.lease and one.fence == lease.fence for one, lease in zip(known, leases, strict=True))


def _undo(context: Context, attempt: Attempt, leases: tuple[Lease, ...], error: BaseException) -> Operation[None]:
    """Undo a failed claim: its position in the queue, its stored tokens, its leases.

    A Redis that did not answer may have granted what it was asked for: then the tokens stay stored for the next claim.
    """
    if isinstance(error, StoreUnavailableError) and not leases:
        return
    with contextlib.suppress(AllocatorError):
        if attempt.waiting:
            from allocator.operations import queue

            yield from queue.leave(context, attempt.request, attempt.waiting.ticket)
        is_ours = yield StoreLeases(attempt.request.pool, context.host, _named(attempt), ())
        if not attempt.is_new or not is_ours:
            return
        if not leases and not isinstance(error, AllocatorError):  # ended while Redis may have been asked
            pool = yield from pool_rules(context, attempt.request.pool)
            known = yield from find(pool, attempt.workers)
            found = zip(known, attempt.tokens, strict=True)
            leases = tuple(replace(one.lease, token=token) for one, token in found if one.lease)
        if leases:
            yield from end.release(context, leases)
