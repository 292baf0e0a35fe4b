"""`reconcile`: keep the table of workers right, once or for good, or show where it is not."""

from __future__ import annotations

import signal
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.db import FOUND, database_of
from allocator.cli.options import (
    ConfigOption,
    DatabaseOption,
    HostOption,
    ListFormat,
    PoolOption,
    RedisOption,
    RowsFormat,
    desk,
    talk,
)
from allocator.cli.output import write_array, write_json, write_rows
from allocator.model.durations import parse_duration_ms
from allocator.model.errors import ConfigurationError, ExhaustedError, HeldError, InvalidInputError
from allocator.model.log import ERROR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.cli.options import Desk
    from allocator.database.connection import Database
    from allocator.database.reconciler import Reconciler

SHORTEST_S = 0.1


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(reconcile)


def reconcile(
    watch: Annotated[bool, typer.Option("--watch", help="Make passes until stopped, woken by events.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Make one pass.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the differences, change nothing.")] = False,
    every: Annotated[
        str, typer.Option("--every", metavar="DURATION", help="With --watch: time between whole passes.")
    ] = "30s",
    metrics_listen: Annotated[
        str | None,
        typer.Option("--metrics-listen", metavar="HOST:PORT", help="With --watch: serve metrics at this HOST:PORT."),
    ] = None,
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """Make the table of workers equal to the leases; with --dry-run exit 1 when it is not.

    Example: allocator reconcile --watch --database-url postgresql://app@db/app
    """
    if watch + once + dry_run != 1:
        raise InvalidInputError("choose what to do: --once, --watch or --dry-run")
    every_s = parse_duration_ms(every, what="time between passes") / 1_000
    if every_s < SHORTEST_S:
        raise InvalidInputError("passes less than 100ms apart only burden the database; give for example --every 30s")
    if metrics_listen is not None and not watch:
        raise InvalidInputError("--metrics-listen goes with --watch")
    if watch:
        from allocator.cli.logs import start_logging

        start_logging()
    with (
        desk(pool, host, redis_url, config, database_url=database_url, reads_only=dry_run) as at,
        database_of(at.settings) as database,
    ):
        if dry_run:
            _show(at, database, form)
        elif once:
            _once(at, database, form)
        else:
            _watch(at, database, every_s, metrics_listen)


def _reconciler(at: Desk, database: Database) -> Reconciler:
    from allocator.database.leader import Leader
    from allocator.database.reconciler import Reconciler
    from allocator.database.upgrade import open_layout

    return Reconciler(
        at.allocator,
        database,
        open_layout(database, at.settings.table),
        leader=Leader(at.allocator),
        refreshes=at.settings.refresh_expiry,
    )


def _show(at: Desk, database: Database, form: ListFormat) -> None:
    from allocator.database.reconciler import differences

    found = differences(at.allocator, database, at.settings.table, refreshes=at.settings.refresh_expiry)
    first = next(found, None)
    if form is ListFormat.JSON:
        write_array(one.as_json() for one in chain([first] if first else [], found))
    elif first is None:
        print("no drift")
    else:
        rows = ((one.kind, one.host, one.port, one.worker, one.action, one.detail) for one in chain([first], found))
        write_rows(("KIND", "HOST", "PORT", "WORKER", "WHAT IS DONE", "DETAIL"), rows, form)
    if first is not None:
        raise typer.Exit(FOUND)


def _once(at: Desk, database: Database, form: ListFormat) -> None:
    from allocator.database.fenced import DeposedError
    from allocator.database.reconciler import Report

    reconciler = _reconciler(at, database)
    with _leadership(reconciler):
        _adopt_manual(at, reconciler)
        try:
            report = reconciler.run(Report())
        except DeposedError:
            raise HeldError(f"another reconciler of pool {at.pool} took over; it makes the pass") from None
    counts = {str(kind): count for kind, count in sorted(report.counts.items())}
    if form is ListFormat.JSON:
        write_json(
            {"leases": report.leases, "written": report.written, "differences": counts, "refused": report.refused}
        )
    else:
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no drift"
        print(f"pool {at.pool}: {report.leases} leases, {told}; {report.written} rows written")
    for worker, why in report.refused.items():
        talk(f"the database refuses the row of {worker}: {why}", level=ERROR)
    if report.refused:
        raise typer.Exit(FOUND)


@contextmanager
def _leadership(reconciler: Reconciler) -> Iterator[None]:
    leader = reconciler.leader
    assert leader is not None  # noqa: S101  # whoever writes has one
    with reconciler.database.reading() as connection:
        leader.known_fence = reconciler.rows.leader_fence(connection)
    held = leader.take()
    if held.fence is None:
        raise HeldError(
            f"{held.holder} leads the reconcilers of pool {reconciler.rows.pool} and makes the passes; "
            "see them with --dry-run, or stop it",
            retry_after=held.remaining_ms / 1_000,
        )
    try:
        yield
    finally:
        leader.give_up()


def _adopt_manual(at: Desk, reconciler: Reconciler) -> None:
    """Make leases of what runs on this host since the manual days."""
    from allocator.database.adoption import adopt_row, manual_rows

    for one in manual_rows(at.allocator, reconciler.database, reconciler.rows):
        if one.listener is None or one.why_not is not None:
            continue
        try:
            lease = adopt_row(at.allocator, at.files, one.row, one.listener)
        except (HeldError, ExhaustedError, InvalidInputError, ConfigurationError) as error:
            talk(f"{one.row.key} was not adopted: {error}")
        else:
            talk(
                f"adopted {lease.worker} on {lease.address} (pid {lease.pid}); the agent of this host renews it", lease
            )


def _watch(at: Desk, database: Database, every_s: float, metrics_listen: str | None) -> None:
    from allocator.database.watcher import Watch, patiently

    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        gauge = None
        if metrics_listen is not None:
            from allocator.database.metrics import serve_metrics

            gauge = stack.enter_context(serve_metrics(metrics_listen, at.pool))
        reconciler = patiently(lambda: _reconciler(at, database), talk)
        watch = Watch(reconciler, every_s, talk, gauge, first=lambda: _adopt_manual(at, reconciler))
        try:
            watch.run(lambda: False)
        except KeyboardInterrupt:
            talk("stopped")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
