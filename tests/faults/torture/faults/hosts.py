"""Faults of a host's name and of its terminals: a clone comes up, a container restarts, nobody reads the output.

The clone and the container are the conductor's own allocators under the actors' host name, with another boot or another
network namespace. Their calls are in the history as those of any actor.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from allocator import AllocatorError, HostConflictError, PortAllocator
from allocator.client.session import make_session
from torture.clients import HOST
from torture.faults import ANYWHERE, Fault
from torture.history import SUCCESSOR, Book
from torture.recording import RecordingStore

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTEMPTS = 5
WAIT_S = 3.0
CLONE_RAN_S = 4.0
"""For how long a clone has run when it claims first: longer than a lease lives without a renewal."""


class _Other(Fault):
    """Somebody else under the host's name."""

    topologies = ANYWHERE
    seconds = (0.0, 0.5)

    @contextmanager
    def allocator(self, *, boot: str | None = None, netns: str | None = None, ran_s: float = 0.0) -> Iterator[None]:
        """Be an allocator on another boot or in another network namespace that began so long ago."""
        self.org = f"{type(self).__name__.lower()}-{self.rng.randrange(2**31)}"
        book = Book(self.arena.directory / f"actor-{self.org}.jsonl")
        store = RecordingStore.open(self.arena.topology.url_for(0), timeout_s=0.8)
        store.book = book
        with PortAllocator(store, make_session(self.arena.pool.name, HOST, "keep")) as self.ports:
            context = self.ports.session.context
            machine, its_boot, its_netns = context.identity.split()
            context.identity = f"{machine} {boot or its_boot} {netns or its_netns}"
            context.began = context.clock() - ran_s
            yield
        book.close()

    def claim(self, instance: int) -> str:
        """Claim a port and give it back; return what came of it."""
        try:
            lease = self.ports.claim(
                "email", org=self.org, instance=instance, ttl=self.arena.pool.ttl_ms / 1_000, wait=WAIT_S
            )  # waiters who are dead are passed by only after a while
        except HostConflictError:
            return "refused"
        except AllocatorError as error:
            return type(error).__name__
        with suppress(AllocatorError):
            self.ports.release(lease)
        return "granted"


class Clone(_Other):
    """A clone of the machine comes up: the same machine id and name, another boot; the first still renews."""

    name = "clone"

    def does(self) -> None:
        with self.allocator(boot="c10e0000-0000-4000-8000-000000000000", ran_s=CLONE_RAN_S):
            found = []
            for number in range(ATTEMPTS):
                found.append(self.claim(number))
                time.sleep(self.rng.uniform(0.02, 0.2))
        self.counted_as = f"clone ({', '.join(sorted(set(found)))})"


class ContainerRestart(_Other):
    """All processes of a container die; it is started again at once, under its name, in another network namespace."""

    name = SUCCESSOR

    def does(self) -> None:
        self.arena.clients.kill_all()
        with self.allocator(netns="1"):
            found = self.claim(0)
        self.counted_as = f"{self.name} ({found})"

    def undoes(self) -> None:
        self.arena.clients.fill()


class UnreadOutput(Fault):
    """A command is started whose output nobody reads: both streams are a pipe that is full."""

    name = "output that nobody reads"
    topologies = ANYWHERE
    seconds = (0.0, 1.0)

    def does(self) -> None:
        self.counted_as = f"output that nobody reads ({self.arena.clients.kill_command(self.rng)})"

    def undoes(self) -> None:
        self.arena.clients.fill()


FAULTS = (Clone, ContainerRestart, UnreadOutput)
