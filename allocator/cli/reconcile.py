"""`reconcile`: keep the table of workers right, once or for good, or show where it is not."""

from __future__ import annotations

import signal
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.context import cli_context, report
from allocator.cli.db import FOUND, database_of
from allocator.cli.options import (
    ConfigOption,
    DatabaseOption,
    HostOption,
    ListFormat,
    PoolOption,
    RedisOption,
    RowsFormat,
)
from allocator.cli.output import write_array, write_json, write_rows
from allocator.model.durations import parse_duration_ms
from allocator.model.errors import ConfigurationError, ExhaustedError, HeldError, InvalidInputError
from allocator.model.log import ERROR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.cli.context import CliContext
    from allocator.database.connection import Database
    from allocator.database.reconciler import Reconciler

SHORTEST_S = 0.1


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(reconcile)


def reconcile(
    watch: Annotated[bool, typer.Option("--watch", help="Follow the events and make passes, until stopped.")] = False,
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
        cli_context(pool, host, redis_url, config, database_url=database_url, reads_only=dry_run) as context,
        database_of(context.settings) as database,
    ):
        if dry_run:
            _show(context, database, form)
        elif once:
            _once(context, database, form)
        else:
            _watch(context, database, every_s, metrics_listen)


def _reconciler(context: CliContext, database: Database) -> Reconciler:
    from allocator.database.leader import Leader
    from allocator.database.reconciler import Reconciler
    from allocator.database.upgrade import open_layout

    return Reconciler(
        context.allocator,
        database,
        open_layout(database, context.settings.table),
        leader=Leader(context.allocator),
        refreshes=context.settings.refresh_expiry,
    )


def _show(context: CliContext, database: Database, form: ListFormat) -> None:
    from allocator.database.reconciler import differences

    found = differences(context.allocator, database, context.settings.table, refreshes=context.settings.refresh_expiry)
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


def _once(context: CliContext, database: Database, form: ListFormat) -> None:
    import logging  # which no help text needs

    from allocator.database.fenced import DeposedError
    from allocator.database.reconciler import Report

    logging.getLogger("allocator").addHandler(logging.NullHandler())  # what is refused is reported at the end
    reconciler = _reconciler(context, database)
    with _leadership(reconciler):
        _adopt_manual(context, reconciler)
        try:
            result = reconciler.run(Report())
        except DeposedError:
            raise HeldError(f"another reconciler of pool {context.pool} took over; it makes the pass") from None
    counts = {str(kind): count for kind, count in sorted(result.counts.items())}
    if form is ListFormat.JSON:
        write_json(
            {"leases": result.leases, "written": result.written, "differences": counts, "refused": result.refused}
        )
    else:
        summary = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no drift"
        print(f"pool {context.pool}: {result.leases} leases, {summary}; {result.written} rows written")
    for worker, why in result.refused.items():
        report(f"the database refuses the row of {worker}: {why}", level=ERROR)
    if result.refused:
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


def _adopt_manual(context: CliContext, reconciler: Reconciler) -> None:
    """Make leases of what runs on this host since the manual days."""
    from allocator.database.adoption import adopt_row, manual_rows

    for one in manual_rows(context.allocator, reconciler.database, reconciler.rows):
        if one.listener is None or one.why_not is not None:
            continue
        try:
            lease = adopt_row(context.allocator, context.files, one.row, one.listener)
        except (HeldError, ExhaustedError, InvalidInputError, ConfigurationError) as error:
            report(f"{one.row.key} was not adopted: {error}")
        else:
            report(
                f"adopted {lease.worker} on {lease.address} (pid {lease.pid}); the agent of this host renews it", lease
            )


def _watch(context: CliContext, database: Database, every_s: float, metrics_listen: str | None) -> None:
    from allocator.database.watcher import Watch, patiently

    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        gauge = None
        if metrics_listen is not None:
            from allocator.database.metrics import serve_metrics

            gauge = stack.enter_context(serve_metrics(metrics_listen, context.pool))
        reconciler = patiently(lambda: _reconciler(context, database), report)
        watch = Watch(reconciler, every_s, report, gauge, first=lambda: _adopt_manual(context, reconciler))
        try:
            watch.run(lambda: False)
        except KeyboardInterrupt:
            report("stopped")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
