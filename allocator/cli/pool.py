"""`pool apply`, `pool show`, `pool ls`, `pool history`, `pool rm`, `pool restore`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli import completion
from allocator.cli.context import cli_context, report
from allocator.cli.force import ReasonOption, YesOption, confirm, forced, leases, operator
from allocator.cli.groups import CommandGroup
from allocator.cli.options import ConfigOption, DatabaseOption, ListFormat, PoolOption, RedisOption, RowsFormat
from allocator.cli.output import write_json, write_rows
from allocator.model.errors import ConfigurationError, InvalidInputError, PoolMissingError, on_one_line
from allocator.model.log import WARNING
from allocator.model.names import check_name
from allocator.model.pools import PoolSpec

if TYPE_CHECKING:
    from allocator.cli.context import CliContext


def register(application: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        cls=CommandGroup, help="Define and show pools: named port ranges with their policies.", no_args_is_help=True
    )
    group.command("apply")(apply)
    group.command("show")(show)
    group.command("ls")(list_pools)
    group.command("history")(history)
    group.command("rm")(remove)
    group.command("restore")(restore)
    application.add_typer(group, name="pool")


def apply(
    file: Annotated[str, typer.Argument(help="A pool file in TOML; - for standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Define a pool, or change its rules; no live lease is touched.

    With --dry-run it prints each rule that would change, and what that means for the present leases.

    Example: allocator pool apply pool.toml
    """
    from allocator.model.files import parse_pool
    from allocator.model.small_files import MAX_FILE_BYTES, read_text

    try:
        text = sys.stdin.read(MAX_FILE_BYTES) if file == "-" else read_text(Path(file))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"the pool file {file} cannot be read ({reason}); check its name and rights") from None
    pool = parse_pool("standard input" if file == "-" else file, text)
    with cli_context(pool.name, None, redis_url, config, reads_only=dry_run) as context:
        if dry_run:
            _foresee(context, pool)
            return
        done = context.allocator.apply_pool(pool, by=operator(context))
        report(f"pool {pool.name}: {done}, ports {pool.first}-{pool.last}")
        if pool.has_limits:
            from allocator.model.pool_changes import limits_below_use

            for line in limits_below_use(pool, context.allocator.leases()):
                report(line)


def _foresee(context: CliContext, pool: PoolSpec) -> None:
    from allocator.model.pool_changes import differences, effects
    from allocator.operations.context import read_pool

    before = context.allocator.run(read_pool(pool.name))
    leases = context.allocator.leases()
    changed = list(differences(before, pool))
    if before is not None and before.scope != pool.scope and context.allocator.hosts():
        print(f"refused  the scope of a pool that hosts use cannot change ({before.scope} to {pool.scope})")
    print(f"pool     {pool.name} would be {'created' if before is None else 'changed' if changed else 'unchanged'}")
    for name, old, new in changed:
        print(f"rule     {name}: {old} -> {new}")
    for line in effects(before, pool, leases):
        print(f"effect   {line}")


def history(
    name: Annotated[str, typer.Argument(help="The pool.", autocompletion=completion.pools)] = "sdk-v2",
    form: RowsFormat = ListFormat.TEXT,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """List the versions of a pool's rules, the last 100: when, by whom, what changed.

    Example: allocator pool history sdk-v2
    """
    from allocator.model.leases import written_time
    from allocator.protocol.keys import event_time, history_key

    check_name("pool", name)
    with cli_context(name, None, redis_url, config, reads_only=True) as context:
        versions = context.allocator.store.newest_events(history_key(name), 100)
        if not versions:
            raise PoolMissingError(f"pool {name} has no history in this Redis; see 'allocator pool ls'")
        rows: list[tuple[object, ...]] = []
        before: PoolSpec | None = None
        for number, (identifier, fields) in enumerate(versions):
            changes, before = _changes(name, fields, before, is_oldest=number == 0)
            at_time = written_time(event_time(identifier))
            version = fields.get("version", "")
            known = int(version) if version.isdecimal() and len(version) < 19 else None
            rows.append((known, at_time, on_one_line(fields.get("by", "-")), changes or None))
        write_rows(("VERSION", "AT", "BY", "CHANGES"), rows, form)


def _changes(
    name: str, fields: dict[str, str], before: PoolSpec | None, *, is_oldest: bool
) -> tuple[str, PoolSpec | None]:
    """Return what a version changed, and its rules; one that another program wrote is named and passed over."""
    from allocator.model.pool_changes import differences

    try:
        pool = PoolSpec.from_fields(name, fields)
    except ConfigurationError:
        return "this entry cannot be read", before
    if is_oldest and fields.get("version") != "1":
        return "", pool
    return "; ".join(f"{rule}: {old} -> {new}" for rule, old, new in differences(before, pool)), pool


def show(
    name: Annotated[str, typer.Argument(help="The pool.", autocompletion=completion.pools)] = "sdk-v2",
    form: RowsFormat = ListFormat.TEXT,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Print a pool's rules, as the file that would make it.

    Example: allocator pool show sdk-v2
    """
    from allocator.model.files import written_pool

    check_name("pool", name)
    with cli_context(name, None, redis_url, config, reads_only=True) as context:
        pool = context.allocator.pool()
        if form is ListFormat.TEXT:
            print(written_pool(pool))
            return
        write_json(asdict(pool))


def list_pools(form: RowsFormat = ListFormat.TEXT, redis_url: RedisOption = None, config: ConfigOption = None) -> None:
    """List the pools, with those that are built in.

    Example: allocator pool ls
    """
    from allocator.model.pools import BUILT_IN
    from allocator.operations.context import read_pool

    with cli_context(None, None, redis_url, config, reads_only=True) as context:
        rows: list[tuple[object, ...]] = []
        unread: ConfigurationError | None = None
        for name in sorted({*context.allocator.store.pool_names(), *BUILT_IN}):
            try:
                pool = context.allocator.run(read_pool(name)) or BUILT_IN.get(name)
            except ConfigurationError as error:  # another program's key must not hide all pools
                unread = error
                report(str(error), level=WARNING)
                continue
            if pool is None:  # removed while it was read
                continue
            rows.append((pool.name, pool.first, pool.last, pool.size, pool.scope))
        if unread is not None and not rows:
            raise unread
        write_rows(("NAME", "FIRST", "LAST", "PORTS", "SCOPE"), rows, form)


def remove(
    name: Annotated[str, typer.Argument(help="The pool.", autocompletion=completion.pools)],
    force: Annotated[bool, typer.Option("--force", help="End its live leases; their holders stop.")] = False,
    reason: ReasonOption = None,
    yes: YesOption = False,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Remove a pool that has no lease: its rules and hosts at once, its events after a week.

    With --force its live leases are ended first; the workers that hold them stop at their next heartbeat.
    A built-in pool is back, with its own rules, as soon as it is used.

    Example: allocator pool rm staging
    """
    from allocator.operations import hosts

    check_name("pool", name)
    with cli_context(name, None, redis_url, config) as context:
        ending = forced(context, force=force, reason=reason, yes=yes)
        if ending:
            count = len(context.allocator.leases())
            confirm(f"Remove pool {name} and end its {leases(count)}, for {ending.reason!r}?", yes=yes)
        ended = context.allocator.run(hosts.remove_pool(name, by=operator(context), forced=ending))
        report(f"pool {name} is removed" + (f"; {leases(ended)} ended" if ending else ""))


def restore(
    from_database: Annotated[
        bool, typer.Option("--from-database", help="From the live rows of the table of workers; nothing else can be.")
    ] = False,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="DURATION",
            help="Time for which a port is reserved for its worker. [default: the pool's TTL]",
        ),
    ] = None,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """After Redis lost its data: reserve the ports of live rows for their workers, so that no worker is moved.

    A port that Redis knows by itself, and a worker that it knows, are left as they are.

    Example: allocator pool restore --from-database --for 5m
    """
    from allocator.cli.db import database_of
    from allocator.database.restore import restore_from_rows
    from allocator.database.upgrade import open_layout
    from allocator.model.durations import parse_duration_ms

    if not from_database:
        raise InvalidInputError("name what the claims are restored from: --from-database")
    wait_ms = None if for_ is None else parse_duration_ms(for_, what="time")
    if wait_ms == 0:
        raise InvalidInputError("ports that wait for 0 s wait for nobody; give for example --for 5m")
    with (
        cli_context(pool, None, redis_url, config, database_url=database_url) as context,
        database_of(context.settings) as database,
    ):
        done = restore_from_rows(context.allocator, database, open_layout(database, context.settings.table), wait_ms)
        report(f"pool {context.pool}: {done.restored} ports wait for their workers, {done.known} were known to Redis")
        for worker in done.unfit:
            report(f"the row of {worker} cannot be a claim: its names, host or port are not of this pool")
