"""Faults of the way to the server: half of the clients go through the proxy, and all through the loopback device."""

from __future__ import annotations

import subprocess
import time

from torture.faults import ONE_HOME, Fault, NothingToDoError
from torture.proxy import LONGEST_REPEAT_S


class Delayed(Fault):
    name = "traffic delayed"
    seconds = (0.5, 4.0)
    holds_back = True
    echoes_s = 0.5

    def does(self) -> None:
        self.arena.topology.proxy.delay_s = self.rng.uniform(0.02, 0.5)

    def undoes(self) -> None:
        self.arena.topology.proxy.delay_s = 0.0


class Dropped(Fault):
    name = "traffic dropped"
    seconds = (0.3, 4.0)

    def does(self) -> None:
        self.arena.topology.proxy.silent = True

    def undoes(self) -> None:
        self.arena.topology.proxy.silent = False
        self.arena.topology.proxy.cut()


class HalfOpen(Fault):
    name = "connections half open"
    seconds = (0.0, 0.0)

    def does(self) -> None:
        self.arena.topology.proxy.half_close()


class Cut(Fault):
    name = "connections reset"
    seconds = (0.0, 0.0)

    def does(self) -> None:
        self.arena.topology.proxy.cut()


class Repeated(Fault):
    name = "traffic duplicated"
    seconds = (0.5, 4.0)
    holds_back = True
    repeats = True
    echoes_s = LONGEST_REPEAT_S + 0.5

    def does(self) -> None:
        self.arena.topology.proxy.repeats = 0.3

    def undoes(self) -> None:
        self.arena.topology.proxy.repeats = 0.0


class LoopbackDown(Fault):
    """The kernel drops every packet for a while; connections go on when it sends them again."""

    name = "loopback down"
    topologies = ONE_HOME
    seconds = (0.2, 2.5)
    holds_back = True

    def does(self) -> None:
        if not self.arena.has_own_network:
            raise NothingToDoError
        self.began = time.monotonic()
        _loopback("down")

    def undoes(self) -> None:
        _loopback("up")
        # The kernel waits twice as long before each further try.
        self.echoes_s = 2 * (time.monotonic() - self.began) + 0.5


def _loopback(state: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", state], check=True)


FAULTS = (Delayed, Dropped, HalfOpen, Cut, Repeated, LoopbackDown)
