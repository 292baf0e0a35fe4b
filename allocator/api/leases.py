"""The routes of leases: claim, show, list, renew, release, decline. A token travels in a header and nowhere else."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request, Response

from allocator.api.access import Claimer, Forcer, Holder, Reader, check_pool
from allocator.api.credentials import Caller
from allocator.api.metrics import watched_claim, watched_renewal
from allocator.api.models import (
    MAX_PAGE,
    MAX_PLUGIN_LENGTH,
    NAME_PATTERN,
    PLUGIN_PATTERN,
    ClaimBody,
    EndBody,
    ForceBody,
    GrantBody,
    LeaseBody,
    LeaseDetail,
    LeasePage,
    LiveState,
    ProcessBody,
    RenewBody,
)
from allocator.api.problems import NOT_FOUND, ProblemError
from allocator.api.routes import (
    HostName,
    IdempotencyKey,
    OwnTokenHeader,
    PoolName,
    PortNumber,
    TokenHeader,
    claims_of,
    known_token,
    problems,
)
from allocator.kernel.identity import ProcessIdentity, boot_id, namespaces
from allocator.kernel.processes import facts_of
from allocator.model.durations import ttl_in_ms
from allocator.model.errors import InvalidInputError, LeaseLostError
from allocator.model.leases import Lease, error_line, written_time
from allocator.model.names import MAX_NAME_LENGTH, WorkerId, check_labels
from allocator.model.states import TRANSITIONS
from allocator.operations.end import Forced, force

if TYPE_CHECKING:
    from allocator.api.claims import Claims
    from allocator.client.aio import AsyncPortAllocator

log = logging.getLogger("allocator.api")
router = APIRouter(prefix="/v1/leases", tags=["leases"])

NameFilter = Annotated[str | None, Query(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
PluginFilter = Annotated[str | None, Query(pattern=PLUGIN_PATTERN, max_length=MAX_PLUGIN_LENGTH)]
After = Annotated[
    str | None,
    Query(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?:[0-9]{1,5}$", description="`next` of the page before."),
]


@router.post("", status_code=201, responses=problems(404, 409))
async def claim(
    body: ClaimBody,
    request: Request,
    response: Response,
    caller: Claimer,
    token: OwnTokenHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> GrantBody:
    """Lease a port for a worker. Claiming again with the same token or Idempotency-Key gives the same lease.

    The token comes in the header `Allocator-Token`: keep it, it is what renews and releases the lease. A lease on
    another host than the server's comes with `proved: false`: decline it when the worker's bind fails.

    With `ports` the header has a token for each name, in their order with commas between; each lease is renewed and
    released by itself.
    """
    check_pool(request, caller, body.pool)
    with watched_claim(request, body.pool):
        leases, proved = await claims_of(request).claim(
            body.pool,
            body.host,
            body.plugin,
            wait=body.wait_s,
            key=body.key,
            ports=body.ports,
            contiguous=body.contiguous,
            org=body.org,
            instance=0 if body.instance == "auto" else body.instance,
            auto_instance=body.instance == "auto",
            port=body.port,
            hint=body.hint,
            ttl=body.ttl_s,
            pid=body.pid,
            labels=body.labels,
            token=_token_to_claim_with(caller, body, token, idempotency_key),
        )
    for lease in leases:
        _note(f"claimed {lease.address} for {lease.worker}", lease, caller)
    response.headers["Allocator-Token"] = ", ".join(str(lease.token) for lease in leases)
    response.headers["Location"] = f"/v1/leases/{leases[0].host}/{leases[0].port}"
    response.headers["Cache-Control"] = "no-store"
    return GrantBody.granted(leases, proved=proved)


def _note(sentence: str, lease: Lease, caller: Caller) -> None:
    """Write one line about one transition; a plain renewal is none."""
    log.info("%s", sentence, extra={"lease": lease, "state": str(lease.state), "caller": caller.name})


def _ended(claims: Claims, lease: Lease, caller: Caller, how: str, *, done: bool) -> EndBody:
    """Answer the end of a lease, and note it when this request did it."""
    claims.forget(lease)
    if done:
        _note(f"{how} {lease.address} of {lease.worker}", lease, caller)
    return EndBody(ended=done)


def _token_to_claim_with(caller: Caller, body: ClaimBody, token: str | None, key: str | None) -> str | None:
    if token is not None:
        return known_token(token)
    if key is None:
        return None
    worker = (body.org, body.plugin, str(body.instance), *([body.key] if body.key else ()))
    return caller.token_for("claim", key, body.pool or "", body.host or "", *worker, *(body.ports or ()))


@router.get("", responses=problems(404))
async def list_leases(
    request: Request,
    _caller: Reader,
    org: NameFilter = None,
    plugin: PluginFilter = None,
    host: NameFilter = None,
    state: Annotated[list[LiveState] | None, Query(description="Only of these states; may be given again.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    after: After = None,
    pool: PoolName = None,
) -> LeasePage:
    """List the live leases of a pool by host and port, a page at a time."""

    def wanted(lease: Lease) -> bool:
        return org in {None, lease.org} and plugin in {None, lease.plugin} and (not state or lease.state in state)

    found = await claims_of(request).page(pool, host, _position(after), limit + 1, wanted)
    more = len(found) > limit
    last = found[limit - 1] if more else None
    return LeasePage(
        leases=[LeaseBody.of(lease) for lease in found[:limit]],
        next=last.address if last else None,
    )


def _position(after: str | None) -> tuple[str, int]:
    name, _, port = (after or ":0").rpartition(":")
    return name, int(port)


@router.get("/{host}/{port}", responses=problems(404))
async def show(
    request: Request, _caller: Reader, host: HostName, port: PortNumber, pool: PoolName = None
) -> LeaseDetail:
    """Show the live lease of a port, and the process of its worker where that runs on the server's host."""
    view = await claims_of(request).view(pool, host, port)
    if view.lease is None:
        raise ProblemError(NOT_FOUND, f"port {port} on {host} has no live lease; claim it with POST /v1/leases")
    process = process_body(view.lease) if host == claims_of(request).host else None
    return LeaseDetail.model_validate({**view.lease.as_json(), "process": process})


def process_body(lease: Lease) -> ProcessBody | None:
    """Return the process of a lease of this host, or None when it cannot be seen from here."""
    seen_from_here = (lease.boot, lease.namespaces) in {(None, None), (boot_id(), namespaces())}
    if lease.pid is None or lease.pid_started is None or not seen_from_here:
        return None
    facts = facts_of(ProcessIdentity(lease.pid, lease.pid_started, boot_id()))
    if facts is None:
        return None
    return ProcessBody(
        pid=lease.pid,
        command=facts.command,
        started_at=written_time(facts.started_at),
        resident_bytes=facts.resident_bytes,
    )


@router.patch("/{host}/{port}", responses=problems(404, 409))
async def renew(
    request: Request,
    caller: Holder,
    host: HostName,
    port: PortNumber,
    token: TokenHeader,
    body: RenewBody | None = None,
    pool: PoolName = None,
) -> LeaseBody:
    """Extend a lease by its TTL from now; set its state, TTL, pid or labels where they are given."""
    claims = claims_of(request)
    at = claims.pool(pool)
    changes = body or RenewBody()
    before = await _holders_copy(claims, at, host, port, changes)
    after = _changed(before, changes)
    if changes.pid is not None:
        after = replace(after, **claims.process_fields(at, host, changes.pid))
    with watched_renewal(request, pool):
        (lease,) = await at.renew(replace(after, token=known_token(token)), rewrite=after != before)
    claims.begin_custody(lease)
    if after != before or lease.fence != before.fence:
        _note(f"renewed {lease.address} of {lease.worker} as {lease.state}", lease, caller)
    return LeaseBody.of(lease)


async def _holders_copy(claims: Claims, at: AsyncPortAllocator, host: str, port: int, changes: RenewBody) -> Lease:
    """Return the lease as its holder has it: from Redis, or from what the holder reported where Redis lost it."""
    view = await claims.view(at.session.pool, host, port)
    if view.lease is not None:
        return view.lease
    known = changes.known_by_holder()
    if known is None:
        raise LeaseLostError(
            f"port {port} on {host} has no live lease; send it as holder_copy to have it back if only Redis lost it, "
            "or claim again",
            host=host,
            port=port,
        )
    rules = await claims.rules(at)
    nominal = claims.nominal(at.session.pool, host, port)
    return replace(
        nominal,
        worker=WorkerId(known.org, known.plugin, known.instance),
        fence=known.fence,
        state=known.state,
        ttl_ms=rules.ttl_ms if known.ttl_s is None else ttl_in_ms(known.ttl_s),
        labels=check_labels(known.labels),
        restarts=known.restarts,
        last_error=error_line(known.last_error or "") or None,
        **claims.process_fields_if_alive(at, host, known.pid),
    )


def _changed(lease: Lease, changes: RenewBody) -> Lease:
    changed = lease
    if changes.state is not None and changes.state != lease.state:
        if changes.state not in TRANSITIONS[lease.state]:
            raise InvalidInputError(
                f"a lease cannot go from {lease.state} to {changes.state}; see the states in the reference",
                host=lease.host,
                port=lease.port,
            )
        changed = replace(changed, state=changes.state)
    if changes.ttl_s is not None:
        changed = replace(changed, ttl_ms=ttl_in_ms(changes.ttl_s))
    if changes.labels is not None:
        changed = replace(changed, labels=check_labels(changes.labels))
    if changes.restarts is not None:
        changed = replace(changed, restarts=changes.restarts)
    if changes.last_error is not None:
        changed = replace(changed, last_error=error_line(changes.last_error) or None)
    return changed


@router.delete("/{host}/{port}", responses=problems(404, 409))
async def release(
    request: Request, caller: Holder, host: HostName, port: PortNumber, token: TokenHeader, pool: PoolName = None
) -> EndBody:
    """Give a port back. Releasing twice is not an error: `ended` states whether this request did it."""
    claims = claims_of(request)
    lease = await claims.held(pool, host, port, known_token(token))
    return _ended(claims, lease, caller, "released", done=await claims.pool(pool).release(lease))


@router.post("/{host}/{port}/decline", responses=problems(404, 409))
async def decline(
    request: Request, caller: Holder, host: HostName, port: PortNumber, token: TokenHeader, pool: PoolName = None
) -> EndBody:
    """End a lease because the kernel refuses its port (`EADDRINUSE`): the port goes into quarantine; claim again."""
    claims = claims_of(request)
    lease = await claims.held(pool, host, port, known_token(token))
    return _ended(claims, lease, caller, "declined", done=await claims.pool(pool).decline(lease))


@router.post("/{host}/{port}/end", responses=problems(404, 409))
async def end(
    request: Request, caller: Forcer, host: HostName, port: PortNumber, body: ForceBody, pool: PoolName = None
) -> EndBody:
    """End a lease that somebody else holds, whose holder is gone; the events keep who did it, and why.

    A holder that lives after all stops its worker at its next heartbeat. Needs the scope `force`.
    """
    claims = claims_of(request)
    lease = (await claims.view(pool, host, port)).lease
    if lease is None:
        return EndBody(ended=False)
    (done,) = await claims.pool(pool).run(force([lease], Forced(caller.name, body.reason)))
    return _ended(claims, lease, caller, "ended by force", done=done)
