"""The actors of a round: which play, who replaces a killed one, how each ended."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from torture.actors import Part
from torture.faults import NothingToDoError
from torture.nursery import Nursery

if TYPE_CHECKING:
    import random

    from torture.arena import Arena

KINDS = ("holder",) * 5 + ("keeper",) * 2 + ("waiter",) * 3


@dataclass(slots=True)
class Player:
    part: Part
    pid: int


class Cast:
    """Keeps one actor of each entry of `KINDS` on the stage."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._nursery = Nursery(arena.mutation)
        self._lock = threading.Lock()
        self._players: dict[int, Player] = {}
        self._number = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._nursery.__exit__(*exc_info)

    def fill(self) -> None:
        """Start an actor for each place that is empty."""
        with self._lock:
            if self._closed:
                return
            for place, kind in enumerate(KINDS):
                if place not in self._players:
                    self._players[place] = self._start(kind)

    def close(self) -> None:
        """Start nobody any more."""
        with self._lock:
            self._closed = True

    def _start(self, kind: str) -> Player:
        self._number += 1
        part = Part(
            name=f"{kind}-{self._number}", kind=kind, url=self._arena.url_for(self._number), pool=self._arena.pool.name,
            directory=str(self._arena.directory), seed=self._arena.seed * 10_007 + self._number,
            ttl_s=self._arena.pool.ttl_ms / 1_000,
        )  # fmt: skip
        return Player(part, self._nursery.start(part))

    def any_pid(self, rng: random.Random) -> int:
        with self._lock:
            return self._players[self._any_place(rng)].pid

    def _any_place(self, rng: random.Random) -> int:
        if not self._players:
            raise NothingToDoError
        return rng.choice(sorted(self._players))

    def kill(self, rng: random.Random) -> None:
        with self._lock:
            self._kill(self._any_place(rng))

    def kill_all(self) -> None:
        with self._lock:
            for place in list(self._players):
                self._kill(place)

    def _kill(self, place: int) -> None:
        player = self._players.pop(place)
        before, after = self._nursery.kill(player.pid)
        self._arena.book.write("death", actor=player.part.name, before=before, after=after)

    def go_on(self, pid: int) -> None:
        """Let an actor go on that was stopped, if it is still there."""
        with self._lock:
            if any(player.pid == pid for player in self._players.values()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def names(self) -> list[str]:
        with self._lock:
            return [player.part.name for player in self._players.values()]

    def gone(self) -> list[tuple[str, int]]:
        """Return the actors that have ended by themselves since this was asked last, with their exit statuses."""
        with self._lock:
            statuses = self._nursery.ended()
            found = []
            for place, player in list(self._players.items()):
                if player.pid in statuses:
                    del self._players[place]
                    found.append((player.part.name, statuses[player.pid]))
            return found
