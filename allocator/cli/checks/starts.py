"""The workers of this host that have not become ready yet, and are not yet a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model import problems
from allocator.model.leases import written_time
from allocator.model.values import Value

if TYPE_CHECKING:
    from allocator.cli.context import CliContext


class Starting(Value):
    """A worker that starts.

    Attributes:
        worker: It.
        port: Its port.
        since: When it was started last (RFC 3339, UTC).
        restarts: How often it was started again.
        last_error: Why it was started again, or None.
    """

    worker: str
    port: int
    since: str
    restarts: int
    last_error: str | None


def starting_workers(context: CliContext) -> list[Starting]:
    """Return the workers of this host that start, but for those that are a finding by now.

    Raises:
        AllocatorError: When Redis cannot tell.
    """
    now = context.allocator.store.server_time()
    return [
        Starting(str(lease.worker), lease.port, written_time(since), lease.restarts, lease.last_error)
        for lease in context.allocator.leases(host=context.host)
        if (since := lease.starts_since) is not None and problems.of_lease(lease, now, None) is None
    ]
