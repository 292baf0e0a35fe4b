"""Whether Redis will do: what it keeps, how soon it answers, its clock, and what this user may do there."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from allocator.cli.checks.findings import Finding
from allocator.cli.checks.rights import missing_rights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.cli.context import CliContext

CLOCK_TOLERANCE_S = 5.0
SLOW_MS = 10.0
PINGS = 5


def check_server(context: CliContext) -> Iterator[Finding]:
    """Look at the server; one that evicts, is a replica or is too old raises, for nothing else can be asked of it."""
    store = context.allocator.store
    for warning in store.server().warnings():
        what, _, fix = warning.rpartition("; ")
        yield Finding("persistence", what, fix)
    times_ms = []
    for _ in range(PINGS):
        before = time.monotonic()
        server_now = store.server_time()
        times_ms.append((time.monotonic() - before) * 1_000)
    took_ms = statistics.median(times_ms)
    if took_ms > SLOW_MS:
        what = f"Redis took {took_ms:.0f} ms to answer, half of the time longer"
        yield Finding("latency", what, "look for a slow network or long scripts: redis-cli slowlog get")
    off_s = time.time() - server_now
    if abs(off_s) > CLOCK_TOLERANCE_S:
        what = f"this host's clock is {off_s:+.0f} s off the server's: leases do not mind, but the times you read do"
        yield Finding("clock", what, "set the clock by NTP: timedatectl set-ntp true")


def check_rights(context: CliContext) -> Iterator[Finding]:
    """Try what a holder must be allowed to do."""
    if found := missing_rights(context.allocator.store, context.pool):
        yield found
