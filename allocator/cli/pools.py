"""`pool apply`, `pool show`, `pool ls`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from allocator.cli.options import ConfigOption, ListFormat, RedisOption, RowsFormat, desk, talk
from allocator.cli.output import write_json, write_rows
from allocator.model.errors import ConfigurationError, PoolMissingError
from allocator.model.names import check_name


def register(application: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Define and show pools: named port ranges with their policies.", no_args_is_help=True)
    group.command("apply")(apply)
    group.command("show")(show)
    group.command("ls")(list_pools)
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
