"""`pool apply`, `pool show`, `pool ls`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from allocator.cli.options import (
    ConfigOption,
    DatabaseOption,
    ListFormat,
    PoolOption,
    RedisOption,
    RowsFormat,
    desk,
    talk,
)
from allocator.cli.output import write_json, write_rows
from allocator.model.errors import ConfigurationError, InvalidInputError, PoolMissingError
from allocator.model.names import check_name


def register(application: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Define and show pools: named port ranges with their policies.", no_args_is_help=True)
    group.command("apply")(apply)
    group.command("show")(show)
    group.command("ls")(list_pools)
    group.command("restore")(restore)
    application.add_typer(group, name="pool")


def apply(
    file: Annotated[str, typer.Argument(help="A pool file in TOML; - for standard input.")],
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Define a pool, or change its rules; no live lease is touched.

    Example: allocator pool apply pool.toml
    """
    from allocator.model.files import parse_pool

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"the pool file {file} cannot be read ({reason}); check its name and rights") from None
    pool = parse_pool("standard input" if file == "-" else file, text)
    with desk(pool.name, None, redis_url, config) as at:
        talk(f"pool {pool.name}: {at.allocator.apply_pool(pool)}, ports {pool.first}-{pool.last}")


def show(
    name: Annotated[str, typer.Argument(help="The pool.")] = "sdk-v2",
    form: RowsFormat = ListFormat.TEXT,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Print a pool's rules, as the file that would make it.

    Example: allocator pool show sdk-v2
    """
    from allocator.model.files import written_pool

    check_name("pool", name)
    with desk(name, None, redis_url, config) as at:
        pool = at.allocator.pool()
        if form is ListFormat.TEXT:
            print(written_pool(pool))
            return
        write_json(asdict(pool))


def list_pools(form: RowsFormat = ListFormat.TEXT, redis_url: RedisOption = None, config: ConfigOption = None) -> None:
    """List the pools, those that are built in included.

    Example: allocator pool ls
    """
    from allocator.model.pools import BUILT_IN
    from allocator.protocol.pools import read_pool

    with desk(None, None, redis_url, config) as at:
        rows = []
        for name in sorted({*at.allocator.store.pool_names(), *BUILT_IN}):
            pool = at.allocator.run(read_pool(name)) or BUILT_IN.get(name)
            if pool is None:
                raise PoolMissingError(f"pool {name} vanished while it was read; try again")
            rows.append((pool.name, pool.first, pool.last, pool.size, pool.scope))
        write_rows(("NAME", "FIRST", "LAST", "PORTS", "SCOPE"), rows, form)


def restore(
    from_database: Annotated[
        bool, typer.Option("--from-database", help="From the live rows of the table of workers; nothing else can be.")
    ] = False,
    for_: Annotated[
        str | None, typer.Option("--for", help="How long a port waits for its worker. [default: the pool's TTL]")
    ] = None,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """After Redis lost everything: keep the ports of live rows for their own workers, so that nobody is moved.

    A port that Redis knows by itself, and a worker that it knows, are left as they are.

    Example: allocator pool restore --from-database --for 5m
    """
    from allocator.cli.databases import database_of
    from allocator.database.restoring import restore_from_rows
    from allocator.database.upgrade import open_layout
    from allocator.model.durations import parse_duration_ms

    if not from_database:
        raise InvalidInputError("say from where the claims are restored: --from-database")
    wait_ms = None if for_ is None else parse_duration_ms(for_, what="time")
    if wait_ms == 0:
        raise InvalidInputError("ports that wait for 0 s wait for nobody; give for example --for 5m")
    with desk(pool, None, redis_url, config, database_url=database_url) as at, database_of(at.settings) as database:
        done = restore_from_rows(at.allocator, database, open_layout(database, at.settings.table), wait_ms)
        talk(f"pool {at.pool}: {done.restored} ports wait for their workers, {done.known} were known to Redis")
        for worker in done.unfit:
            talk(f"the row of {worker} cannot be a claim: its names, host or port are not of this pool")
