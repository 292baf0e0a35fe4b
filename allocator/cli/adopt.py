"""`adopt`: what runs on this host since before there were leases becomes leases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.context import cli_context, report
from allocator.cli.db import FOUND, database_of, in_use
from allocator.cli.options import (
    ConfigOption,
    DatabaseOption,
    HostOption,
    ListFormat,
    PoolOption,
    RedisOption,
    RowsFormat,
)
from allocator.cli.output import write_rows
from allocator.model.errors import ExhaustedError, HeldError, InvalidInputError
from allocator.model.names import WorkerId, check_port, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from allocator.cli.context import CliContext
    from allocator.database.adoption import Candidate
    from allocator.database.connection import Database
    from allocator.database.fenced import FencedRows
    from allocator.database.rows import Row, RowKey


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(adopt)


def adopt(
    port: Annotated[
        str | None, typer.Option("--port", metavar="PORT", help="By hand: a port that a worker of this host has bound.")
    ] = None,
    org: Annotated[str | None, typer.Option("--org", metavar="ORG", help="By hand: the worker's organisation.")] = None,
    plugin: Annotated[
        str | None, typer.Option("--plugin", metavar="PLUGIN", help="By hand: the worker's plugin.")
    ] = None,
    instance: Annotated[
        str, typer.Option("--instance", metavar="NUMBER", help="By hand: the worker's instance.")
    ] = "0",
    apply: Annotated[
        bool,
        typer.Option(
            "--apply", help="Also set rows of this host to the state stopped when nothing listens on their port."
        ),
    ] = False,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="DURATION", help="Lifetime without a renewal: 30s, 10m, 1h.")
    ] = None,
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """Make leases for workers that run on this host without one; bind them to the listening processes.

    Without --port it takes the rows of the table of workers that another program wrote. Renew the leases with
    the agent of this host, or with 'allocator renew PORT --every 10s --pid PID'.

    Example: allocator adopt --apply

    Example: allocator adopt --port 5556 --org org-123 --plugin email
    """
    from allocator.cli.context import seconds

    ttl_s = seconds(ttl, "TTL")
    if ttl_s == 0:
        raise InvalidInputError("a TTL of 0 ends at once; give for example 30s")
    ttl_ms = None if ttl_s is None else round(ttl_s * 1_000)
    by_hand = {"--port": port, "--org": org, "--plugin": plugin}
    given = [name for name, value in by_hand.items() if value is not None]
    if given and len(given) < len(by_hand):
        missing = next(name for name in by_hand if name not in given)
        raise InvalidInputError(f"{given[0]} goes with {missing}; give --port, --org and --plugin together")
    if given and apply:
        raise InvalidInputError("--apply is about the rows of the table; leave out --port, --org and --plugin")
    with cli_context(pool, host, redis_url, config, database_url=database_url) as context:
        if port is not None and org is not None and plugin is not None:
            worker = WorkerId.parse(f"{org}/{plugin}#{instance}")
            _by_hand(context, WorkerId(org, plugin, worker.instance), check_port(port), ttl_ms, form)
        else:
            _from_rows(context, ttl_ms, form, apply=apply)


def _by_hand(context: CliContext, worker: WorkerId, port: int, ttl_ms: int | None, form: ListFormat) -> None:
    from allocator.database.adoption import adopt as make_lease
    from allocator.kernel.sockets import listeners

    context.allocator.pool().check_port(port)
    found = listeners(port, port)
    if not found:
        raise InvalidInputError(f"nobody listens on port {port} of {context.host}; claim it instead: allocator claim")
    pid = next((one.pid for one in found if one.pid is not None), None)
    if pid is None:
        raise InvalidInputError(f"the process that listens on port {port} cannot be seen by this user; run as its user")
    lease = make_lease(context.allocator, context.files, worker, port, pid, ttl_ms=ttl_ms)
    write_rows(_HEADINGS, [(context.host, port, str(worker), "adopted", f"pid {lease.pid}")], form)


_HEADINGS = ("HOST", "PORT", "WORKER", "WHAT WAS DONE", "DETAIL")


MOST_LISTED = 1_000
"""Rows that are listed where nobody listens: a table may have a million that nobody set to stopped."""


@dataclass(slots=True)
class Listed:
    """What was done with rows, by lines, and how many were not taken over."""

    lines: list[tuple[object, ...]] = field(default_factory=list)
    unbound: int = 0
    left: int = 0

    def add_unbound(self, rows: list[Row], kept: Mapping[RowKey, str] | None) -> None:
        """Add rows where nobody listens; `kept` are those that could not be stopped and why, None: none was to be."""
        self.unbound += len(rows)
        self.left += len(kept or ())
        for row in rows[: max(0, MOST_LISTED - len(self.lines))]:
            done = "nothing" if kept is None or row.key in kept else "set to stopped"
            why_not = f", but nothing was written: {kept[row.key]}" if kept and row.key in kept else ""
            self.lines.append((row.host, row.port, str(row.key), done, f"nobody listens on its port here{why_not}"))


def _from_rows(context: CliContext, ttl_ms: int | None, form: ListFormat, *, apply: bool) -> None:
    from allocator.database.adoption import in_batches, manual_rows, stop_unbound, unexplained_rows
    from allocator.database.fenced import FencedRows
    from allocator.database.upgrade import check_writable, open_layout

    with database_of(context.settings) as database:
        rows = FencedRows(open_layout(database, context.settings.table), context.pool)
        check_writable(database, context.settings.table, leads=False)  # before a lease is made that no row follows
        report(in_use(context.settings, database))
        bound, listed = Listed(), Listed()

        def unbound() -> Iterator[Row]:
            """Adopt what runs, on the way; yield what does not."""
            for one in manual_rows(context.allocator, database, rows):
                if one.listener is None and one.why_not is not None and one.row.key.worker is not None:
                    yield one.row
                    continue
                done, why = _adopted(context, database, rows, one, ttl_ms)
                bound.lines.append((context.host, one.row.port, str(one.row.key), done, why))
                bound.left += done == "nothing" or "not written" in why
            yield from unexplained_rows(context.allocator, database, rows)

        for some in in_batches(unbound()):
            listed.add_unbound(some, stop_unbound(context.allocator, database, rows, some) if apply else None)
        if not bound.lines and not listed.lines:
            _name_other_pools(context, database, rows)
    write_rows(_HEADINGS, [*_by_port(bound), *_by_port(listed)], form)
    if more := listed.unbound - len(listed.lines):
        report(f"{more} more rows where nobody listens are not listed")
    if listed.unbound and not apply:
        report(f"{listed.unbound} rows show a worker where nobody listens; --apply sets them to stopped")
    if left := bound.left + listed.left:
        report(f"{left} rows were not taken over")
        raise typer.Exit(FOUND)


def _by_port(listed: Listed) -> list[tuple[object, ...]]:
    return sorted(listed.lines, key=lambda line: (line[1] is None, line[1], line[2]))


def _name_other_pools(context: CliContext, database: Database, rows: FencedRows) -> None:
    with database.reading() as connection:
        found = rows.other_pools(connection)
    if found:
        named = ", ".join(f"{count} in pool {shown(pool)}" for pool, count in found.items())
        report(
            f"pool {context.pool} has no row to take over here; the table has live rows of others: {named}; see --pool"
        )


def _adopted(
    context: CliContext, database: Database, rows: FencedRows, one: Candidate, ttl_ms: int | None
) -> tuple[str, str]:
    from allocator.database.adoption import adopt_row, write_adopted

    if one.listener is None or one.why_not is not None:
        return "nothing", one.why_not or ""
    try:
        lease = adopt_row(context.allocator, context.files, one.row, one.listener, ttl_ms=ttl_ms)
    except (HeldError, ExhaustedError, InvalidInputError) as error:
        return "nothing", str(error)
    refused = write_adopted(database, rows, one.row.key, lease)
    return "adopted", f"pid {lease.pid}" + (f"; its row is not written: {refused}" if refused else "")
