"""`events`: what happened in the pool."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli import completion
from allocator.cli.context import cli_context, items_of, seconds
from allocator.cli.options import ConfigOption, ListFormat, PoolOption, RedisOption, RowsFormat
from allocator.cli.output import write_json
from allocator.model.errors import InvalidInputError, on_one_line
from allocator.model.names import WorkerId, check_name, check_port
from allocator.model.states import EVENT_TYPES
from allocator.model.values import Value
from allocator.operations.context import check_pool
from allocator.protocol.keys import event_time, events_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.cli.context import CliContext

MAX_EVENTS = 10_000
COUNT = 20
PAGE = 1_000


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(events)


class Wanted(Value):
    """Which events are wanted; None and an empty set are for all.

    Attributes:
        worker: Of this worker.
        host: Of this host.
        port: Of this port.
        types: Of these types.
    """

    worker: WorkerId | None = None
    host: str | None = None
    port: int | None = None
    types: frozenset[str] = frozenset()

    def has(self, fields: dict[str, str]) -> bool:
        """Return whether an event is one of them."""
        return (
            (self.worker is None or fields.get("worker") == str(self.worker))
            and self.host in {None, fields.get("host")}
            and (self.port is None or fields.get("port") == str(self.port))
            and (not self.types or fields.get("type") in self.types)
        )


def events(
    count: Annotated[
        str | None,
        typer.Option(
            "--count", metavar="COUNT", help=f"Number of the newest events. [default: {COUNT}; all with --since]"
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DURATION", help="Events not older than this: 10m, 1h, 2d.")
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(
            "--worker",
            metavar="ORG/PLUGIN[#INSTANCE]",
            help="Events of this worker only.",
            autocompletion=completion.workers,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="HOST", help="Events of this host only.", autocompletion=completion.hosts),
    ] = None,
    port: Annotated[
        str | None,
        typer.Option("--port", metavar="PORT", help="Events of this port only.", autocompletion=completion.ports),
    ] = None,
    types: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE,TYPE", help="Events of these types only, for example expired,failed."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print new events as they come.")] = False,
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Print what happened in the pool, one event a line.

    Example: allocator events --worker org-123/email --since 1h --follow
    """
    if count is not None and not (count.isascii() and count.isdecimal() and 1 <= int(count[:9]) <= MAX_EVENTS):
        raise InvalidInputError(f"--count takes a whole number from 1 to {MAX_EVENTS}")
    most = int(count) if count else COUNT if since is None else MAX_EVENTS
    since_s = seconds(since, "time")
    wanted = Wanted(
        worker=None if worker is None else WorkerId.parse(worker),
        host=None if host is None else check_name("host", host),
        port=None if port is None else check_port(port),
        types=items_of(types, "--type", EVENT_TYPES),
    )
    with cli_context(pool, None, redis_url, config, reads_only=True) as context:
        store, stream = context.allocator.store, events_key(context.pool)
        known = store.newest_events(stream, most if wanted == Wanted() and since_s is None else MAX_EVENTS)
        if not known:
            context.allocator.run(check_pool(context.pool))
        after = 0.0 if since_s is None else store.server_time() - since_s
        found = [(name, fields) for name, fields in known if event_time(name) >= after and wanted.has(fields)]
        for name, fields in found[-most:]:
            _write(name, fields, form)
        if follow:
            for name, fields in _coming(context, stream, known[-1][0] if known else "0-0"):
                if wanted.has(fields):
                    _write(name, fields, form)


def _coming(context: CliContext, stream: str, last: str) -> Iterator[tuple[str, dict[str, str]]]:
    store = context.allocator.store
    while True:
        if store.wait_for_event(stream, last, 60.0):
            for name, fields in store.read_events(stream, last, PAGE):
                last = name
                yield name, fields


def _write(identifier: str, fields: dict[str, str], form: ListFormat) -> None:
    moment = event_time(identifier)
    if form is ListFormat.JSON:
        from allocator.model.leases import written_time

        write_json({**fields, "id": identifier, "at": written_time(moment)})
        return
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    is_of_lease = fields.get("port") != "0"
    shown = {"type", "host", "port", "worker"} | (set() if is_of_lease else {"fence"})
    rest = {name: value for name, value in fields.items() if name not in shown}
    tail = " ".join(f"{name}={value}" for name, value in rest.items())
    address = f"{fields.get('host')}:{fields.get('port')}" if is_of_lease else fields.get("host")
    line = f"{clock}  {fields.get('type', '?').ljust(10)}  {address}  {fields.get('worker')}  {tail}"
    print(on_one_line(line), flush=True)
