"""The actors of a round: which play, who replaces a killed one, how each ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from torture.clients import COMMANDS, ClientSpec
from torture.faults import NothingToDoError
from torture.forker import Forker

if TYPE_CHECKING:
    import random

    from torture.environment import Environment

KINDS = ("holder",) * 5 + ("keeper",) * 2 + ("waiter",) * 3 + ("supervisor",) * 2 + ("bound",) * 2 + ("agent",)
WITH_DATABASE = (*KINDS, "reconciler", "reconciler")


@dataclass(slots=True)
class ClientProcess:
    part: ClientSpec
    pid: int


class ClientProcesses:
    """Keeps one actor of each entry of `KINDS` on the stage."""

    def __init__(self, arena: Environment) -> None:
        self._arena = arena
        self._nursery = Forker(arena.mutation)
        self._lock = threading.Lock()
        self._running: dict[int, ClientProcess] = {}
        self._number = 0
        self._unread: set[int] = set()
        self._closed = False
        self.somebody_died = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._nursery.__exit__(*exc_info)

    def fill(self) -> None:
        """Start an actor for each slot that is empty."""
        with self._lock:
            if self._closed:
                return
            for slot, kind in enumerate(WITH_DATABASE if self._arena.table else KINDS):
                if slot not in self._running:
                    self._running[slot] = self._start(kind, unread=slot in self._unread)
                    self._unread.discard(slot)

    def close(self) -> None:
        """Start nobody any more."""
        with self._lock:
            self._closed = True

    def _start(self, kind: str, *, unread: bool) -> ClientProcess:
        self._number += 1
        arena = self._arena
        part = ClientSpec(
            name=f"{kind}-{self._number}",
            kind=kind,
            url=arena.topology.url_for(self._number),
            pool=arena.pool.name,
            directory=str(arena.directory),
            seed=arena.seed * 10_007 + self._number,
            ttl_s=arena.pool.ttl_ms / 1_000,
            database=arena.table.url if arena.table else "",
            unread=unread,
        )
        return ClientProcess(part, self._nursery.start(part))

    def any_of_them(self, rng: random.Random) -> tuple[int, str]:
        """Return somebody's pid and kind."""
        with self._lock:
            client = self._running[self._any_slot(rng)]
            return client.pid, client.part.kind

    def _any_slot(self, rng: random.Random) -> int:
        if not self._running:
            raise NothingToDoError
        return rng.choice(sorted(self._running))

    def kill(self, rng: random.Random) -> str:
        """Kill somebody; return of which kind."""
        with self._lock:
            slot = self._any_slot(rng)
            kind = self._running[slot].part.kind
            self._kill(slot)
            return kind

    def kill_command(self, rng: random.Random) -> str:
        """Kill a command, whose successor has nobody who reads its output; return of which kind."""
        with self._lock:
            slots = [slot for slot, client in self._running.items() if client.part.kind in COMMANDS]
            if not slots:
                raise NothingToDoError
            slot = rng.choice(sorted(slots))
            kind = self._running[slot].part.kind
            self._kill(slot)
            self._unread.add(slot)
            return kind

    def kill_all(self) -> None:
        with self._lock:
            for slot in list(self._running):
                self._kill(slot)

    def _kill(self, slot: int) -> None:
        self.somebody_died = True
        client = self._running.pop(slot)
        before, after = self._nursery.kill(client.pid)
        self._arena.book.write("death", actor=client.part.name, before=before, after=after)

    def go_on(self, pid: int) -> None:
        """Let an actor go on that was stopped, if it is still there."""
        with self._lock:
            if any(client.pid == pid for client in self._running.values()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def names(self) -> list[str]:
        """Return who plays."""
        with self._lock:
            return [client.part.name for client in self._running.values()]

    def tend(self, *, may_end: bool) -> None:
        """Take note of those who have ended by themselves; a command may do that whenever it cannot go on.

        Args:
            may_end: Whether the others may end too.
        """
        with self._lock:
            before = time.monotonic()
            statuses = self._nursery.ended()
            for slot, client in list(self._running.items()):
                if client.pid not in statuses:
                    continue
                del self._running[slot]
                name, status = client.part.name, statuses[client.pid]
                ends_by_itself = client.part.kind in {*COMMANDS, "bound"}
                self._arena.book.write("death", actor=name, before=before, after=time.monotonic())
                found = (self._arena.directory / f"log-{name}").read_text(errors="replace")
                if "Traceback" in found or (status and not ends_by_itself) or not (may_end or ends_by_itself):
                    self._arena.book.write("crashed", actor=name, error=f"{name} ended with {status}: {found[-2_000:]}")

    def dismiss_commands(self) -> None:
        """Tell the commands to end, as a service manager does."""
        with self._lock:
            for client in self._running.values():
                if client.part.kind in COMMANDS:
                    with suppress(ProcessLookupError):
                        os.kill(client.pid, signal.SIGTERM)
