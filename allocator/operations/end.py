"""Release and decline: end leases, one batch per call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.errors import HeldError, InvalidInputError
from allocator.model.leases import error_line
from allocator.operations.context import space_of
from allocator.operations.pools import pool_rules
from allocator.operations.renew import BATCH, places_by_host
from allocator.protocol import decode
from allocator.protocol.calls import ScriptCall
from allocator.protocol.keys import script_keys
from allocator.protocol.replies import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.model.leases import Lease
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation


def release(context: Context, leases: Sequence[Lease]) -> Operation[list[bool]]:
    """End leases; their ports become claimable after the cooldown, for their own workers at once.

    Returns:
        For each lease, in their order, whether this call ended it (False: it had ended already).

    Raises:
        HeldError: When someone else holds one of the ports; the other leases are ended all the same.
        InvalidInputError: When a lease has no token.
    """
    return (yield from _end(context, "release", leases))


def decline(context: Context, leases: Sequence[Lease]) -> Operation[list[bool]]:
    """End leases because the kernel refused their ports, which go into quarantine; as `release` else."""
    return (yield from _end(context, "decline", leases))


def fail(context: Context, lease: Lease, why: str) -> Operation[bool]:
    """Record that the worker of a held lease failed, as an event that outlives the lease.

    Returns:
        Whether it was recorded (False: the lease is not this holder's any more).
    """
    pool = yield from pool_rules(context, lease.pool)
    args = (lease.port, _token(lease), error_line(why))
    reply = decode.words((yield ScriptCall("fail", script_keys(lease.pool, space_of(pool, lease.host)), args)))
    return decode.text(reply[0]) == Reply.CHANGED


def _end(context: Context, script: str, leases: Sequence[Lease]) -> Operation[list[bool]]:
    ended: dict[int, bool] = {}
    refused: HeldError | None = None
    for (pool_name, host), members in places_by_host(leases).items():
        pool = yield from pool_rules(context, pool_name)
        keys = script_keys(pool_name, space_of(pool, host))
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            args: list[str | int] = []
            for i in batch:
                args += (leases[i].port, _token(leases[i]))
            reply = decode.words((yield ScriptCall(script, keys, tuple(args))))
            for at, i in enumerate(batch):
                code = decode.text(reply[2 * at])
                ended[i] = code in {Reply.RELEASED, Reply.DECLINED}
                if code == Reply.NOT_YOURS:
                    refused = _not_yours(leases[i], reply[2 * at + 1])
    if refused:
        raise refused
    return [ended[i] for i in range(len(leases))]


def _token(lease: Lease) -> str:
    if not lease.token:
        raise InvalidInputError(
            f"the lease of {lease.worker} on {lease.address} has no token; only its holder can end it"
        )
    return lease.token


def _not_yours(lease: Lease, detail: object) -> HeldError:
    holder = decode.lease(lease.pool, detail, remaining_ms=0, now_ms=lease.expires_at * 1_000)
    return HeldError(
        f"port {lease.port} on {lease.host} is held by {holder.worker} under another token; nothing was changed",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        holder=holder,
    )
