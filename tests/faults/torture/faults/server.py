"""Faults of one Redis server: its process, its data, its clients, its memory."""

from __future__ import annotations

import os
import shutil
import signal

import redis

from torture import topologies
from torture.faults import ANYWHERE, ONE_HOME, Fault, NothingToDoError


class OfServer(Fault):
    """A fault that is an order to the running server."""

    def order(self, *arguments: object) -> None:
        """Give an order and wait for its answer.

        Raises:
            NothingToDoError: When the server is not there to take it. It may have taken effect all the same.
        """
        try:
            with self.arena.admin(timeout_s=12.0) as client:
                client.execute_command(*arguments)
        except (redis.RedisError, OSError) as error:
            raise NothingToDoError(str(error)) from error


class FlushAll(OfServer):
    name = "FLUSHALL"
    topologies = ANYWHERE
    seconds = (0.0, 0.0)
    lossy = True

    def does(self) -> None:
        self.loses_since = 0.0
        self.order("FLUSHALL")


class ScriptFlush(OfServer):
    name = "SCRIPT FLUSH"
    topologies = ANYWHERE
    seconds = (0.0, 0.0)

    def does(self) -> None:
        self.order("SCRIPT", "FLUSH")


class ClientKill(OfServer):
    name = "CLIENT KILL"
    topologies = ANYWHERE
    seconds = (0.0, 0.0)

    def does(self) -> None:
        self.order("CLIENT", "KILL", "TYPE", "normal")


class ClientPause(OfServer):
    name = "CLIENT PAUSE"
    topologies = ONE_HOME
    seconds = (0.2, 3.0)
    holds_back = True

    def does(self) -> None:
        self.order("CLIENT", "PAUSE", 4_000, self.rng.choice(("ALL", "WRITE")))

    def undoes(self) -> None:
        self.order("CLIENT", "UNPAUSE")


class DebugSleep(OfServer):
    name = "DEBUG SLEEP"
    topologies = ONE_HOME
    seconds = (0.0, 0.0)
    holds_back = True

    def does(self) -> None:
        self.order("DEBUG", "SLEEP", round(self.rng.uniform(0.2, 3.0), 2))


class MaxMemory(OfServer):
    name = "maxmemory reached"
    topologies = ONE_HOME
    seconds = (0.3, 3.0)

    def does(self) -> None:
        self.order("CONFIG", "SET", "maxmemory", "1mb")

    def undoes(self) -> None:
        self.order("CONFIG", "SET", "maxmemory", "0")


class ReadOnly(OfServer):
    """The server becomes a replica of one that is not there: it has its data and takes no writes."""

    name = "read-only replica"
    seconds = (0.3, 3.0)

    def does(self) -> None:
        self.order("REPLICAOF", "127.0.0.1", 1)

    def undoes(self) -> None:
        self.order("REPLICAOF", "NO", "ONE")


class Stop(Fault):
    name = "SIGSTOP of the server"
    topologies = ONE_HOME
    seconds = (0.2, 4.0)
    holds_back = True

    def does(self) -> None:
        self.server = self.arena.server
        self.pid = self.server.process.pid
        if self.server.process.poll() is not None:
            raise NothingToDoError
        os.kill(self.pid, signal.SIGSTOP)

    def undoes(self) -> None:
        if self.server.process.pid == self.pid and self.server.process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)


class Crash(Fault):
    """SIGKILL, and a start with all its data: what was confirmed is in the append-only file."""

    name = "restart of the server"
    topologies = ONE_HOME
    seconds = (0.1, 2.5)

    def does(self) -> None:
        self.server = self.arena.server
        if not topologies.crash(self.server):
            raise NothingToDoError
        self.spoil()

    def spoil(self) -> None:
        """Do something to the data."""
        self.loses_since = self.arena.unwritten_since

    def undoes(self) -> None:
        topologies.start_again(self.server)


class CrashWithoutData(Crash):
    name = "restart without its data"
    topologies = frozenset({"standalone"})
    lossy = True

    def spoil(self) -> None:
        self.loses_since = 0.0
        shutil.rmtree(self.server.directory / "appendonlydir", ignore_errors=True)


class CrashTruncated(Crash):
    name = "restart with a truncated AOF"
    topologies = frozenset({"standalone"})
    lossy = True

    def spoil(self) -> None:
        self.loses_since = 0.0
        files = sorted(self.server.directory.glob("appendonlydir/*.incr.aof"), key=lambda one: one.stat().st_mtime)
        if files:
            size = files[-1].stat().st_size
            os.truncate(files[-1], max(0, size - self.rng.randrange(1, 60_000)))


FAULTS = (
    FlushAll, ScriptFlush, ClientKill, ClientPause, DebugSleep, MaxMemory, ReadOnly, Stop, Crash, CrashWithoutData,
    CrashTruncated,
)  # fmt: skip
