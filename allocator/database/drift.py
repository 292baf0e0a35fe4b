"""Where Redis, SQL and the kernel of this host disagree: each case named once, and what is done about it.

Nothing here reads or writes: a lease, a row and what Redis knows of the worker go in, a difference comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from allocator.database.fenced import Stop
from allocator.model.leases import written_time
from allocator.model.states import LeaseState
from allocator.model.tables import ERROR, STOPPED
from allocator.protocol.replies import Reply

if TYPE_CHECKING:
    from allocator.database.rows import Row, RowKey
    from allocator.model.leases import Lease
    from allocator.protocol.signatures.inspect import Whereabouts


class Kind(StrEnum):
    """The kinds of differences.

    missing-row: a live lease whose worker has no row. stale-row: a live row whose lease has ended. wrong-port: the
    row of a live lease names another host or port. wrong-state: its state, pid, counts or fence are another's.
    unknown-row: a live row that no lease explains. unknown-listener: a process of this host listens on a port of the
    pool without a lease. duplicate-live: a live row has a host and port that are leased to another worker.
    """

    MISSING_ROW = "missing-row"
    STALE_ROW = "stale-row"
    WRONG_PORT = "wrong-port"
    WRONG_STATE = "wrong-state"
    UNKNOWN_ROW = "unknown-row"
    UNKNOWN_LISTENER = "unknown-listener"
    DUPLICATE_LIVE = "duplicate-live"


class Action(StrEnum):
    """What is done about a difference."""

    WRITE = "write the row"
    STOP = "set the row to stopped"
    ADOPT = "adopt it as a lease"
    NONE = "nothing"


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference.

    Attributes:
        kind: What it is.
        action: What is done about it.
        worker: Whose lease or row it is, as text, or None for a listener.
        host: The lease's host, or the row's, or this one.
        port: The port likewise.
        detail: The values on both sides, as text.
        key: The row's key, where there is a row or can be one.
        lease: The live lease, or None.
        stop: How the row ends, when it is stopped.
    """

    kind: Kind
    action: Action
    worker: str | None
    host: str | None
    port: int | None
    detail: str
    key: RowKey | None = None
    lease: Lease | None = None
    stop: Stop | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--format json` prints."""
        return {
            "kind": str(self.kind),
            "host": self.host,
            "port": self.port,
            "worker": self.worker,
            "detail": self.detail,
            "action": str(self.action),
        }


def shown_by_lease(lease: Lease, row: Row) -> str | None:
    """Return how a row differs from its worker's live lease, as `name row → lease`, or None when it does not."""
    pairs = (
        ("host", row.host, lease.host),
        ("port", row.port, lease.port),
        ("state", str(lease.state) if row.is_in(str(lease.state)) else row.state, str(lease.state)),
        ("fence", row.fence, lease.fence),
        *(
            (name, old, new)
            for column, name, old, new in (
                ("pid", "pid", row.pid, lease.pid),
                ("restart_count", "restarts", row.restart_count, lease.restarts),
                ("last_error", "last error", row.last_error, lease.last_error),
            )
            if column not in row.lacks
        ),
    )
    detail = [
        f"{name} {old if old is not None else '-'} → {new if new is not None else '-'}"
        for name, old, new in pairs
        if old != new
    ]
    return ", ".join(detail) or None


def of_lease(lease: Lease, key: RowKey | None, row: Row | None, why_not: str | None = None) -> Difference | None:
    """Return how a live lease and its worker's row differ.

    Args:
        lease: The lease.
        key: The key of its worker's row, or None when the column cannot hold its organisation.
        row: The row, or None for none.
        why_not: Why its worker can have no row, or None when it can.
    """
    row_fields = {"worker": str(lease.worker), "host": lease.host, "port": lease.port, "lease": lease, "key": key}
    if key is None:
        reason = f"organisation {lease.org} is not a uuid, which is what the column holds"
        return Difference(Kind.MISSING_ROW, Action.NONE, detail=reason, **row_fields)  # type: ignore[arg-type]  # as above
    if why_not is not None:
        return Difference(Kind.MISSING_ROW, Action.NONE, detail=why_not, **row_fields)  # type: ignore[arg-type]  # as above
    if row is None:
        reason = f"leased, {lease.state}, fence {lease.fence}"
        return Difference(Kind.MISSING_ROW, Action.WRITE, detail=reason, **row_fields)  # type: ignore[arg-type]  # as above
    detail = shown_by_lease(lease, row)
    if detail is None:
        return None
    kind = Kind.WRONG_PORT if row.address != (lease.host, lease.port) else Kind.WRONG_STATE
    if row.fence is not None and row.fence > lease.fence:
        detail += "; the row is of a newer lease, which its holder will re-assert"
        return Difference(kind, Action.NONE, detail=detail, **row_fields)  # type: ignore[arg-type]  # as above
    return Difference(kind, Action.WRITE, detail=detail, **row_fields)  # type: ignore[arg-type]  # as above


def of_row(row: Row, known: Whereabouts | None, tenant: Lease | None) -> Difference | None:
    """Return what is wrong with the row of a worker that has no live lease.

    Args:
        row: The row.
        known: What Redis knows of its worker; None when no lease could have its names.
        tenant: The live lease of another worker on the row's host and port, or None.
    """
    if not row.is_live:
        return None
    row_fields = {"worker": str(row.key), "host": row.host, "port": row.port, "key": row.key}
    if known is not None and known.explains_end_of(row.fence):
        state, why = how_it_ended(row, known)
        reason = why or f"its lease was {known.how}"
        stop = Stop(row.key, known.fence, state, why)
        return Difference(Kind.STALE_ROW, Action.STOP, detail=f"{row.state}; {reason}", stop=stop, **row_fields)  # type: ignore[arg-type]  # as above
    if tenant is not None:
        reason = f"{row.state}; its port is leased to {tenant.worker}"
        is_newer = (
            row.fence is not None and row.fence > tenant.fence
        )  # one of its own fence is its row under another key
        action = Action.NONE if is_newer else Action.STOP
        stop = Stop(row.key, row.fence, STOPPED, f"its port was leased to {tenant.worker}")
        return Difference(Kind.DUPLICATE_LIVE, action, detail=reason, stop=None if is_newer else stop, **row_fields)  # type: ignore[arg-type]  # as above
    detail = "has no host" if row.host is None else "has no port" if row.port is None else "has no fence"
    reason = detail if row.fence is None or row.host is None or row.port is None else "Redis knows no lease of it"
    return Difference(Kind.UNKNOWN_ROW, Action.NONE, detail=f"{row.state}; {reason}", **row_fields)  # type: ignore[arg-type]  # as above


def how_it_ended(row: Row, known: Whereabouts) -> tuple[str, str | None]:
    """Return the last state of a row whose lease has ended, and why, where that is more than a release.

    A worker that had failed and was not well again when its lease ended is in `error`; every other one is `stopped`,
    and the row reports it when nobody released the lease.
    """
    if row.last_error and row.state in {LeaseState.STARTING, LeaseState.DEGRADED}:
        return ERROR, None
    if known.how is Reply.EXPIRED:
        when = f" at {written_time(row.expires_at)} or later" if row.expires_at else ""
        return STOPPED, f"its lease expired{when}: nobody released it"
    if known.how is Reply.DECLINED:
        return STOPPED, "its port was declined: the kernel had refused it"
    return STOPPED, None
