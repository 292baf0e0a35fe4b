"""A claim from the command line: its token is on disk before Redis is asked, and its lease file before it is printed.

The promise of this file: whatever ends a claim (Ctrl-C, `kill -9`, a full disk, another claim for the same worker at
the same moment) leaves either nothing, or a lease that the next claim of this worker on this host gets.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from allocator.cli.interrupts import ignore_interrupts, interrupts_raised
from allocator.client.session import new_token
from allocator.client.superseding import claim_over_the_dead
from allocator.model.errors import AllocatorError, HeldError, StoreUnavailableError
from allocator.operations.several import named_workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.cli.options import Desk
    from allocator.client.arguments import ClaimArguments
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId

MAX_ROUNDS = 20
ROUND_PAUSE_S = 0.05
"""Another claim of the same worker ends within milliseconds; after a second it is not that which stands in the way."""


def claim_and_save(
    at: Desk,
    worker: WorkerId,
    arguments: ClaimArguments,
    *,
    wait_s: float | None,
    token: str | None,
    record: bool,
) -> Lease:
    """Claim a port for a worker, or get the one again that it has on this host, and save its lease file.

    Args:
        at: What the command works with.
        worker: Who the lease is for.
        arguments: The rest of the claim.
        wait_s: How long to wait for a free port, in seconds.
        token: The token that the user gave, or None.
        record: Whether the worker's row is written too.

    Raises:
        AllocatorError: As `PortAllocator.claim`; nothing is left of the claim, except that a Redis which did not answer
            may have granted it: then its token is kept for the next claim.
    """
    if arguments.get("auto_instance"):  # it has no name yet, under which a token could be kept
        named = at.allocator.claim(worker.plugin, wait=wait_s, record=record, **arguments | {"token": token})
        at.files.save(named)
        return named
    for _ in range(MAX_ROUNDS):
        known = at.files.find(at.pool, at.host, worker)
        proof = token or (live_token(at, known) if known else None)
        if proof is not None:
            lease: Lease | None = at.allocator.claim(
                worker.plugin, wait=wait_s, record=record, **arguments | {"token": proof}
            )
            assert lease is not None  # noqa: S101  # for the type checker
            at.files.save(lease)
        else:
            lease = _claim_anew(at, worker, arguments, wait_s, record=record)
        if lease is not None:
            if known and known.port != lease.port:
                at.files.remove(known)
            return lease
        time.sleep(ROUND_PAUSE_S)
    raise HeldError(f"another claim for {worker} on {at.host} goes on; claim again", host=at.host, worker=str(worker))


def _claim_anew(
    at: Desk, worker: WorkerId, arguments: ClaimArguments, wait_s: float | None, *, record: bool
) -> Lease | None:
    """Claim with a token of its own; None when another claim for this worker was finished or undone meanwhile."""
    from allocator.operations.pools import pool_rules

    at.allocator.run(
        pool_rules(at.allocator.session.context, at.pool)
    )  # and with it all imports, where Ctrl-C may come
    token, mine = "", False
    lease: Lease | None = None
    try:
        with interrupts_raised():
            token, mine = at.files.begin_claim(at.pool, at.host, worker, new_token())
            lease = claim_over_the_dead(
                at.allocator, worker.plugin, wait_s, record=record, **arguments | {"token": token}
            )
            at.files.save(lease)
            ignore_interrupts()
    except StoreUnavailableError:
        raise
    except KeyboardInterrupt:
        if token:
            _undo(at, worker, token)
        raise
    except HeldError as error:
        at.files.end_claim(at.pool, at.host, worker)
        if _was_saved_meanwhile(at, worker, error):
            return None
        raise
    except AllocatorError:
        if lease is None:
            at.files.end_claim(at.pool, at.host, worker)
        else:
            _undo(at, worker, token)
        raise
    if at.files.end_claim(at.pool, at.host, worker) or mine or live_token(at, lease):
        return lease
    at.files.remove(lease)
    return None


def _was_saved_meanwhile(at: Desk, worker: WorkerId, error: HeldError) -> bool:
    if error.holder is None or error.holder.worker != worker:
        return False
    known = at.files.find(at.pool, at.host, worker)
    return known is not None and known.fence == error.holder.fence


def _undo(at: Desk, worker: WorkerId, token: str) -> None:
    """Give back what this claim may have been granted, unless another one for this worker has finished it."""
    if not at.files.end_claim(at.pool, at.host, worker):
        return
    with contextlib.suppress(AllocatorError):
        for lease in at.allocator.leases(org=worker.org, plugin=worker.plugin, host=at.host):
            if lease.instance == worker.instance and at.allocator.release(replace(lease, token=token)):
                at.files.remove(replace(lease, token=token))


def live_token(at: Desk, known: Lease) -> str | None:
    """Return the token of a saved lease if Redis says that it is live; another grant needs another token."""
    from allocator.operations import listing
    from allocator.operations.pools import pool_rules

    rules = at.allocator.run(pool_rules(at.allocator.session.context, at.pool))
    space = at.allocator.session.context.space(rules)
    live = at.allocator.run(listing.port_view(at.pool, space, known.port)).lease
    return known.token if live and live.fence == known.fence else None


def claim_named(
    at: Desk,
    worker: WorkerId,
    arguments: ClaimArguments,
    names: Sequence[str],
    *,
    adjacent: bool,
    wait_s: float | None,
) -> dict[str, Lease]:
    """Claim several ports for a worker, or get those again that it has on this host, and save their lease files.

    Raises:
        AllocatorError: As `PortAllocator.claim_ports`; nothing is left of the claim then.
    """
    workers = named_workers(worker, names)
    saved = [at.files.find(at.pool, at.host, one) for one in workers]
    live = {(lease.port, lease.fence) for lease in at.allocator.leases() if lease.host == at.host}
    known = [lease for lease in saved if lease and (lease.port, lease.fence) in live]
    if len(known) == len(workers):
        return dict(zip(names, _kept(at, worker, arguments, known, adjacent=adjacent), strict=True))
    if known:  # some ran out: all are claimed anew
        at.allocator.release_all(*known)
    for lease in filter(None, saved):
        at.files.remove(lease)
    leases = at.allocator.claim_ports(worker.plugin, names, adjacent=adjacent, wait=wait_s, **arguments)
    try:
        for lease in leases.values():
            at.files.save(lease)
    except AllocatorError:
        at.allocator.release_all(*leases.values())
        raise
    return leases


def _kept(at: Desk, worker: WorkerId, arguments: ClaimArguments, known: list[Lease], *, adjacent: bool) -> list[Lease]:
    """Renew the leases that a worker has, with what it says now, and save their files."""
    from allocator.operations.claim import as_asked

    ports = [lease.port for lease in known]
    if adjacent and ports != list(range(ports[0], ports[0] + len(ports))):
        numbers = ", ".join(map(str, ports))
        raise HeldError(
            f"{worker} has ports {numbers} on {at.host}, which are not adjacent; release it, then claim again"
        )
    request = at.allocator.session.request(worker.plugin, **arguments)
    wanted = [as_asked(lease, request) for lease in known]
    leases = at.allocator.renew(*wanted, rewrite=wanted != known)
    for lease in leases:
        at.files.save(lease)
    return leases
