"""Whether the database can be reached, has the table as it should be, agrees with the leases, and is kept so."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

from allocator.cli.checks.findings import Finding
from allocator.cli.db import database_in_use
from allocator.protocol.keys import leader_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.cli.context import CliContext


def check_table(context: CliContext) -> Iterator[Finding]:
    """Look at the table alone; a database that nobody configured and nobody made is not a finding."""
    database = database_in_use(context.settings)
    if database is None:
        return
    from allocator.database.upgrade import check

    with closing(database):
        found = check(database, context.settings.table)
    for missing in found.missing:
        yield Finding("database", f"the database lacks {missing}", "allocator db upgrade")
    for finding in found.findings:
        what, _, fix = finding.text.rpartition("; ")
        yield Finding("database", what or finding.text, fix if what else "allocator db check")


def check_drift(context: CliContext) -> Iterator[Finding]:
    """Compare the rows with the leases, and ask who keeps them equal; nothing where the table cannot be read yet."""
    database = database_in_use(context.settings)
    if database is None:
        return
    from allocator.database.drift import Kind
    from allocator.database.reconciler import differences
    from allocator.database.upgrade import check

    with closing(database):
        if not check(database, context.settings.table).is_fit:
            return
        found = differences(
            context.allocator, database, context.settings.table, refreshes=context.settings.refresh_expiry
        )
        kinds = Counter(one.kind for one in found if one.kind is not Kind.UNKNOWN_LISTENER)
    counts = {str(kind): count for kind, count in sorted(kinds.items())}
    if counts:
        summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        yield Finding(
            "drift",
            f"the table of workers and the leases differ: {summary}",
            "allocator reconcile --once  (see --dry-run)",
        )
    if leader_of(context) is None and (counts or context.settings.database_url):
        what = f"nobody leads the reconcilers of pool {context.pool}, so that the table does not follow the leases"
        yield Finding("leader", what, "allocator reconcile --watch")


def leader_of(context: CliContext) -> str | None:
    """Return who leads the reconcilers of the pool, or None."""
    written = context.allocator.store.read_text(leader_key(context.pool))
    return None if written is None else str(json.loads(written)["holder"])
