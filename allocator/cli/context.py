"""What a command works with once its options are read, what they come to, and what it prints for people.

Nothing here loads the parser of command lines: `run` does its work without it.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from allocator.model.durations import parse_duration_ms
from allocator.model.errors import InvalidInputError, printable
from allocator.model.log import INFO
from allocator.model.names import WorkerId, shown
from allocator.model.settings import Settings, load_settings
from allocator.model.values import Value

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable, Iterator

    from allocator.client.blocking import PortAllocator
    from allocator.client.lease_files import LeaseFiles
    from allocator.model.leases import Lease
    from allocator.store.embedded.server import EmbeddedStatus


class CliContext(Value):
    """What a command works with.

    Attributes:
        settings: What it goes by.
        allocator: The pool's leases on this host.
    """

    settings: Settings
    allocator: PortAllocator

    @property
    def files(self) -> LeaseFiles:
        """The tokens of leases that were claimed here."""
        from allocator.client.lease_files import LeaseFiles

        return LeaseFiles(self.settings.state_dir / "leases")

    @property
    def host(self) -> str:
        """The name of this host."""
        return self.allocator.session.host

    @property
    def pool(self) -> str:
        """The pool's name."""
        return self.settings.pool


def read_settings(
    pool: str | None, host: str | None, redis_url: str | None, config: str | None, **others: str | None
) -> Settings:
    """Return the settings that the flags, the environment and the file make."""
    flags = {"pool": pool, "host": host, "redis_url": redis_url, **others}
    settings = load_settings(flags, os.environ, config=config)
    for refused in settings.refused:
        report(refused)
    return settings


@contextmanager
def cli_context(
    pool: str | None = None,
    host: str | None = None,
    redis_url: str | None = None,
    config: str | None = None,
    *,
    advertise: str | None = None,
    database_url: str | None = None,
    reads_only: bool = False,
) -> Iterator[CliContext]:
    """Give what a command works with, connected lazily, closed at the end."""
    settings = read_settings(pool, host, redis_url, config, advertise=advertise, database_url=database_url)
    with blocking_allocator(settings, reads_only=reads_only) as allocator:
        yield CliContext(settings, allocator)


def blocking_allocator(settings: Settings, *, reads_only: bool = False) -> PortAllocator:
    """Return the allocator that the settings make, not connected yet.

    Args:
        settings: The settings.
        reads_only: Whether its command only reads, for which no embedded server is started.
    """
    from allocator.client.blocking import PortAllocator
    from allocator.client.session import session_of
    from allocator.store.base import open_store
    from allocator.store.blocking import Store

    store = open_store(Store, settings, reads_only=reads_only, on_start=report_embedded)
    return PortAllocator(store, session_of(settings))


def instance_of(context: CliContext, worker: WorkerId, key: str) -> WorkerId:
    """Return a worker with the instance that its service has for a key on this host."""
    from allocator.operations.numbers import number_of

    number = context.allocator.run(
        number_of(context.allocator.session.context, context.pool, worker.org, worker.plugin, key)
    )
    return WorkerId(worker.org, worker.plugin, number)


def report_embedded(status: EmbeddedStatus) -> None:
    """Report that this command started an embedded server."""
    report(f"no Redis is configured: started an embedded server (pid {status.pid}) with its data in {status.data_dir}")


def seconds(text: str | None, what: str) -> float | None:
    """Return a duration of the command line in seconds, or None when it was not given."""
    return None if text is None else parse_duration_ms(text, what=what) / 1_000


def items_of(text: str | None, option: str, known: Iterable[str], *, only_one: bool = False) -> frozenset[str]:
    """Return the items of a list with commas; nothing for an option that was not given.

    Args:
        text: What was given.
        option: The option's name.
        known: The items that it may have.
        only_one: Whether it is one of them and no list.

    Raises:
        InvalidInputError: When it has another item.
    """
    items = [] if text is None else [text] if only_one else text.split(",")
    for item in items:
        if item not in known:
            raise InvalidInputError(f"{shown(item)} is not a value of {option}; choose {', '.join(sorted(known))}")
    return frozenset(items)


def living_process(text: str) -> int:
    """Return the pid of a process that lives.

    Raises:
        InvalidInputError: When the text is not a pid or no such process lives.
    """
    from allocator.kernel.identity import identify

    if not text.isdecimal() or len(text) > 9 or identify(int(text)) is None:
        raise InvalidInputError(f"{shown(text)} is not the pid of a living process; give one, for example $PPID")
    return int(text)


class Console:
    """Prints one line for the person who watches; that nobody does stops no command.

    Attributes:
        log: Where a long-running command writes it instead, once it has begun to log.
    """

    log: logging.Logger | None = None

    def __call__(self, line: str, lease: Lease | None = None, *, level: int = INFO) -> None:
        """Print it.

        Args:
            line: The sentence, which may have a name of anybody's in it.
            lease: What it is about, or None.
            level: How bad it is, for the log: one of the levels of `logging`.
        """
        line = printable(line)
        if self.log is not None:
            self.log.log(level, "%s", line, extra={"lease": lease})
            return
        from allocator.kernel.outlets import PATIENCE_S, select_room

        with suppress(OSError):
            if select_room(2, PATIENCE_S):
                print(f"allocator: {line}", file=sys.stderr)


report = Console()
