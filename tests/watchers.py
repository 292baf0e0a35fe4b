"""A watcher of a test, in a thread, with what it reports to people and for metrics."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from allocator import PortAllocator
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler, Report
from allocator.database.upgrade import open_layout
from allocator.database.watcher import Watch
from allocator.model.tables import TableNames

if TYPE_CHECKING:
    from allocator.database.connection import Database

NAMES = TableNames()


def wait_until(condition, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Seen:
    """What a watcher reports for its metrics."""

    def __init__(self) -> None:
        self.leading, self.outages = False, 0

    def leads(self, *, leads: bool) -> None:
        self.leading = leads

    def failed(self, _error: Exception) -> None:
        self.outages += 1

    def passed(self, _report: Report, _seconds: float) -> None: ...

    def followed(self, _report: Report, _lag_s: float) -> None: ...


class Watching:
    """A watcher in a thread, with what it reports."""

    def __init__(self, redis_url: str, pool: str, database: Database, every_s: float = 0.3) -> None:
        self.lines: list[str] = []
        self.seen = Seen()
        self.error: Exception | None = None
        self._ports = PortAllocator.from_url(redis_url, pool=pool, host="watcher")
        reconciler = Reconciler(self._ports, database, open_layout(database, NAMES), leader=Leader(self._ports))
        self._watch = Watch(reconciler, every_s, self.lines.append, self.seen)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._watch.run(self._over.is_set)
        except Exception as error:
            self.error = error
            raise

    def printed(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join(60)
        self._ports.close()
        assert not self._thread.is_alive()
