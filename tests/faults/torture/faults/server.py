"""Faults of one Redis server: its process, its data, its clients, its memory."""

from __future__ import annotations

import os
import shutil
import signal

import redis

from torture.faults import Fault, NothingToDoError


class OfServer(Fault):
    """A fault that is an order to the running server."""

    def order(self, *words: object) -> None:
        """Give an order and wait for its answer.

        Raises:
            NothingToDoError: When the server is not there to take it. It may have taken effect all the same.
        """
        try:
            with self.arena.admin(timeout_s=12.0) as client:
                client.execute_command(*words)
        except (redis.RedisError, OSError) as error:
            raise NothingToDoError(str(error)) from error


class FlushAll(OfServer):
    name = "FLUSHALL"
    seconds = (0.0, 0.0)
    lossy = True

    def does(self) -> None:
        self.loses_since = 0.0
        self.order("FLUSHALL")


class ScriptFlush(OfServer):
    name = "SCRIPT FLUSH"
    seconds = (0.0, 0.0)

    def does(self) -> None:
        self.order("SCRIPT", "FLUSH")


class ClientKill(OfServer):
    name = "CLIENT KILL"
    seconds = (0.0, 0.0)

    def does(self) -> None:
        self.order("CLIENT", "KILL", "TYPE", "normal")


class ClientPause(OfServer):
    name = "CLIENT PAUSE"
    seconds = (0.2, 3.0)
    holds_back = True

    def does(self) -> None:
        self.order("CLIENT", "PAUSE", 4_000, self.rng.choice(("ALL", "WRITE")))

    def undoes(self) -> None:
        self.order("CLIENT", "UNPAUSE")


class DebugSleep(OfServer):
    name = "DEBUG SLEEP"
    seconds = (0.0, 0.0)
    holds_back = True

    def does(self) -> None:
        self.order("DEBUG", "SLEEP", round(self.rng.uniform(0.2, 3.0), 2))


class MaxMemory(OfServer):
    name = "maxmemory reached"
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
    seconds = (0.2, 4.0)
    holds_back = True

    def does(self) -> None:
        self.pid = self.arena.server.process.pid
        if self.arena.server.process.poll() is not None:
            raise NothingToDoError
        os.kill(self.pid, signal.SIGSTOP)

    def undoes(self) -> None:
        if self.arena.server.process.pid == self.pid and self.arena.server.process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)


class Crash(Fault):
    """SIGKILL, and a start with all its data: what was confirmed is in the append-only file."""

    name = "restart of the server"
    seconds = (0.1, 2.5)

    def does(self) -> None:
        if not self.arena.crash():
            raise NothingToDoError
        self.spoil()

    def spoil(self) -> None:
        """Do something to the data."""
        self.loses_since = self.arena.unwritten_since

    def undoes(self) -> None:
        self.arena.start_again()


class CrashWithoutData(Crash):
    name = "restart without its data"
    lossy = True

    def spoil(self) -> None:
        self.loses_since = 0.0
        shutil.rmtree(self.arena.server.directory / "appendonlydir", ignore_errors=True)


class CrashTruncated(Crash):
    name = "restart with a truncated AOF"
    lossy = True

    def spoil(self) -> None:
        self.loses_since = 0.0
        files = sorted(
            self.arena.server.directory.glob("appendonlydir/*.incr.aof"), key=lambda one: one.stat().st_mtime
        )
        if files:
            size = files[-1].stat().st_size
            os.truncate(files[-1], max(0, size - self.rng.randrange(1, 60_000)))


FAULTS = (
    FlushAll, ScriptFlush, ClientKill, ClientPause, DebugSleep, MaxMemory, ReadOnly, Stop, Crash, CrashWithoutData,
    CrashTruncated,
)  # fmt: skip
