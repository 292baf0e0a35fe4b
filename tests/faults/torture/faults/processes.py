"""Faults of the client processes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from torture.faults import ANYWHERE, Fault


class KillClient(Fault):
    """SIGKILL; another takes its place."""

    name = "SIGKILL of a client"
    topologies = ANYWHERE
    seconds = (0.0, 1.0)

    def does(self) -> None:
        self.counted_as = f"SIGKILL ({self.arena.clients.kill(self.rng)})"

    def undoes(self) -> None:
        self.arena.clients.fill()


class StopClient(Fault):
    """SIGSTOP, for longer than its leases live or not, and SIGCONT."""

    name = "SIGSTOP of a client"
    topologies = ANYWHERE
    seconds = (0.2, 4.5)

    def does(self) -> None:
        self.pid, kind = self.arena.clients.any_of_them(self.rng)
        self.counted_as = f"SIGSTOP ({kind})"
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)

    def undoes(self) -> None:
        self.arena.clients.go_on(self.pid)


class KillAllClients(Fault):
    """SIGKILL of all at once, as when a host goes down; others come."""

    name = "SIGKILL of all clients"
    topologies = ANYWHERE
    seconds = (0.0, 2.0)

    def does(self) -> None:
        self.arena.clients.kill_all()

    def undoes(self) -> None:
        self.arena.clients.fill()


FAULTS = (KillClient, StopClient, KillAllClients)
