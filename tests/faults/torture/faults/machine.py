"""Faults of the server's machine: its disk is full, its wall clock jumps."""

from __future__ import annotations

import time
from contextlib import suppress

import redis

from torture import topologies
from torture.faults import Fault, NothingToDoError

MOST_AHEAD_S = 4.0
"""The clock stays within so many seconds of this machine's: a round waits for the leases that a jump back lengthens."""


class DiskFull(Fault):
    """The file system of the server's files has no room left.

    With `appendfsync everysec` the server goes on to answer what it cannot write until it notices, and refuses changes
    from then on; with `always` it ends itself before it answers.
    """

    name = "disk full"
    seconds = (0.5, 3.0)

    def does(self) -> None:
        if self.arena.topology.disk is None or self.arena.unwritten_since is not None:
            raise NothingToDoError
        self.arena.unwritten_since = time.monotonic()
        self.filler = self.arena.topology.disk / "filler"
        with self.filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def undoes(self) -> None:
        self.filler.unlink()
        topologies.start_again(self.arena.server)
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            with suppress(redis.RedisError, OSError), self.arena.admin() as client:
                if client.info("persistence")["aof_last_write_status"] == "ok":
                    break
            topologies.start_again(self.arena.server)
            time.sleep(0.05)
        self.arena.unwritten_since = None


class ClockJump(Fault):
    """The wall clock of the server goes ahead or back, by less than the grace or by more than a lease's time."""

    name = "clock jump"
    seconds = (0.0, 0.0)

    def does(self) -> None:
        if self.arena.topology.clock is None:
            raise NothingToDoError
        small = self.arena.pool.grace_ms / 1_000 * 0.8
        while True:
            jump_s = self.rng.choice(
                (self.rng.uniform(-small, small), self.rng.uniform(-2 * MOST_AHEAD_S, 2 * MOST_AHEAD_S))
            )
            if abs(self.arena.topology.clock.ahead_s + jump_s) <= MOST_AHEAD_S:
                break
        self.jump_s = jump_s
        self.arena.topology.clock.jump(jump_s)
        time.sleep(0.2)  # the server reads the file now and then


FAULTS = (DiskFull, ClockJump)
