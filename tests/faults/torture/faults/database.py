"""Faults of PostgreSQL: crashed, restarted, restored from an old copy."""

from __future__ import annotations

import signal
from contextlib import suppress

import psycopg

from torture.faults import ANYWHERE, Fault, NothingToDoError


class Crash(Fault):
    name = "SIGKILL of PostgreSQL"
    topologies = ANYWHERE
    seconds = (0.2, 2.0)
    how = signal.SIGKILL

    def does(self) -> None:
        if self.arena.table is None or not self.arena.database_down.acquire(blocking=False):
            raise NothingToDoError
        self.arena.table.server.stop(self.how)

    def undoes(self) -> None:
        self.arena.table.server.start()
        self.arena.database_down.release()


class Restart(Crash):
    name = "restart of PostgreSQL"
    how = signal.SIGINT


class RestoreOld(Fault):
    """The rows are those of a while ago."""

    name = "old copy of the rows restored"
    topologies = ANYWHERE
    seconds = (1.0, 5.0)

    def does(self) -> None:
        if self.arena.table is None:
            raise NothingToDoError
        with suppress(psycopg.Error):
            self.copy = self.arena.table.copy()
            return
        raise NothingToDoError

    def undoes(self) -> None:
        with suppress(psycopg.Error):
            self.arena.table.restore(self.copy)


FAULTS = (Crash, Restart, RestoreOld)
