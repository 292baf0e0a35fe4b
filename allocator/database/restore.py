"""The way back: after Redis lost everything and no holder could re-assert, live rows become provisional claims.

The rule of this file: it only adds. What Redis knows by itself is newer than any row, and is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from allocator.database.fenced import MAX_FENCE
from allocator.database.rows import READ_AT_ONCE, Rows
from allocator.operations.context import pool_rules
from allocator.operations.lead import Remembered, restore

if TYPE_CHECKING:
    from allocator.client.blocking import PortAllocator
    from allocator.database.connection import Database
    from allocator.database.layout import Layout
    from allocator.database.rows import Row
    from allocator.model.pools import PoolSpec

UNFIT_SHOWN = 20


@dataclass(slots=True)
class Restored:
    """What became of the rows.

    Attributes:
        restored: How many ports wait for their workers now.
        known: How many Redis knew by itself.
        unfit: The first rows that cannot be claims.
    """

    restored: int = 0
    known: int = 0
    unfit: list[str] = field(default_factory=list)


def restore_from_rows(
    allocator: PortAllocator, database: Database, layout: Layout, wait_ms: int | None = None
) -> Restored:
    """Keep the ports of live rows for their own workers.

    Args:
        allocator: The pool's leases.
        database: Where the rows are.
        layout: The tables there.
        wait_ms: How long a port waits for its worker, in milliseconds; None for the pool's TTL.

    Raises:
        PoolMissingError: When Redis lost the pool too and nobody knows its rules: it has to be applied first.
    """
    done = Restored()
    pool = allocator.run(pool_rules(allocator.session.context, allocator.session.pool, fresh=True))
    claims: list[Remembered] = []

    def send() -> None:
        results = allocator.run(restore(pool, claims, wait_ms or pool.ttl_ms))
        done.restored += sum(results)
        done.known += len(results) - sum(results)
        claims.clear()

    for row in Rows(layout, pool.name).in_order(database):
        claim = _remembered(pool, row)
        if claim is not None:
            claims.append(claim)
        elif len(done.unfit) < UNFIT_SHOWN:
            done.unfit.append(str(row.key))
        if len(claims) >= READ_AT_ONCE:
            send()
    send()
    return done


def _remembered(pool: PoolSpec, row: Row) -> Remembered | None:
    from allocator.model.errors import InvalidInputError
    from allocator.model.names import check_name

    worker = row.key.worker
    if worker is None or row.port is None or row.port not in pool:
        return None
    if row.fence is not None and not 0 <= row.fence <= MAX_FENCE:
        return None
    try:
        host = check_name("host", row.host or "")
    except InvalidInputError:
        return None
    return Remembered(worker, host, row.port, row.fence or 1)  # the restored one is one below
