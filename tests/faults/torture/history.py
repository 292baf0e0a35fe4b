"""The form of a history: what actors and the conductor write, one JSON object a line, and how it is read again.

A line is written with one `write` to a file opened for appending, so that a process that is killed loses at most the
line that it had not begun. A call is two lines, `begin` and `end`; where the second is missing its outcome is unknown.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

OK, REFUSED, UNKNOWN = "ok", "refused", "unknown"
SUCCESSOR = "container restart"
"""The fault after which what the dead held under the host's name is ended at once."""


class Book:
    """A file that lines are added to by one process; safe for its threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = 0
        self._lock = threading.Lock()

    def write(self, kind: str, **fields: Any) -> None:
        os.write(self._descriptor, (json.dumps({"kind": kind} | fields, default=str) + "\n").encode())

    def begin(self, op: str, **fields: Any) -> int:
        """Enter that a call begins now; return its number."""
        with self._lock:
            self._numbers += 1
            number = self._numbers
        self.write("begin", call=number, op=op, at=time.monotonic(), **fields)
        return number

    def end(self, number: int, outcome: str, **fields: Any) -> None:
        """Enter how a call ended, now."""
        self.write("end", call=number, at=time.monotonic(), outcome=outcome, **fields)

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(slots=True)
class Call:
    """One call of a script: what was asked, when, and what is known of its outcome.

    Attributes:
        items: For each lease that it was about, what was asked and what was answered (`code`, and what came with it).
        attempts: How often it was sent; one that was sent twice may have taken effect twice, the second time late.
    """

    actor: str
    op: str
    began: float
    ended: float
    outcome: str
    items: list[dict[str, Any]]
    attempts: int = 1
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Listening:
    """A socket of an actor on a port: it surely listened from `since` until `until`."""

    actor: str
    port: int
    since: float
    until: float


@dataclass(slots=True)
class Fault:
    """A fault as it was done.

    Attributes:
        began: Before it was done.
        ended: After it was undone.
        loses_since: From when on confirmed writes may be lost, or None when it loses none.
        jump_s: By how much the server's clock went ahead (below 0: back).
        holds_back: Whether what was sent in its time may take effect only at its end.
        repeats: Whether what was sent in its time may take effect twice.
    """

    name: str
    began: float
    ended: float
    loses_since: float | None = None
    jump_s: float = 0.0
    holds_back: bool = False
    repeats: bool = False


@dataclass(slots=True)
class History:
    """All that is known of one round.

    Attributes:
        ports: How many ports the pool has.
        declined: By port, the fences of grants that were declined, as far as the pool's events were read in time.
    """

    ttl_s: float
    grace_s: float
    kind_of_redis: str = "standalone"
    ports: int = 1
    calls: list[Call] = field(default_factory=list)
    listenings: list[Listening] = field(default_factory=list)
    leased: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    deaths: dict[str, tuple[float, float]] = field(default_factory=dict)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    settled: list[dict[str, Any]] = field(default_factory=list)
    crashes: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    declined: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def finish(self) -> History:
        """Put everything in the order of time, and count it."""
        self.calls.sort(key=lambda call: call.began)
        self.snapshots.sort(key=lambda one: one["began"])
        self.counts = Counter((call.op, call.outcome) for call in self.calls)
        return self


def read_history(directory: Path) -> History:
    """Read all books of a round."""
    lines = _lines(directory / "conductor.jsonl")
    pool = next(line for line in lines if line["kind"] == "pool")
    history = History(pool["ttl_s"], pool["grace_s"], pool["kind_of_redis"], pool["ports"])
    for line in lines:
        _read_entry(history, line)
    for book in sorted(directory.glob("actor-*.jsonl")):
        actor = book.stem.removeprefix("actor-")
        _ActorBook(history, actor).read(_lines(book))
    return history.finish()


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for text in path.read_text().splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:  # cut short by a kill
            continue
    return found


def _read_entry(history: History, line: dict[str, Any]) -> None:
    kind = line.pop("kind")
    if kind == "fault":
        history.faults.append(Fault(**line))
    elif kind == "death":
        history.deaths[line["actor"]] = line["before"], line["after"]
    elif kind == "declined":
        history.declined[line["port"]].add(line["fence"])
    elif kind in {"snapshot", "settled", "crashed", "row"}:
        {
            "snapshot": history.snapshots,
            "settled": history.settled,
            "crashed": history.crashes,
            "row": history.rows,
        }[kind].append(line)


class _ActorBook:
    """Puts the begins and ends of one actor's book together."""

    def __init__(self, history: History, actor: str) -> None:
        self._history = history
        self._actor = actor
        self._died = history.deaths.get(actor, (math.inf, math.inf))

    def read(self, lines: list[dict[str, Any]]) -> None:
        begun: dict[int, dict[str, Any]] = {}
        bound: dict[int, float] = {}
        for line in lines:
            kind = line["kind"]
            if kind == "begin":
                begun[line["call"]] = line
            elif kind == "end":
                self._add(begun.pop(line["call"]), line)
            elif kind == "bound":
                bound[line["port"]] = line["at"]
            elif kind == "closing":
                self._listened(line["port"], bound.pop(line["port"]), line["at"])
            elif kind == "leased":
                self._history.leased.append(line | {"actor": self._actor})
            elif kind == "crashed":
                self._history.crashes.append(line | {"actor": self._actor})
        for line in begun.values():
            self._add(line, {"at": self._died[1], "outcome": UNKNOWN})
        for port, since in bound.items():
            self._listened(port, since, self._died[0])

    def _listened(self, port: int, since: float, until: float) -> None:
        if until > since:
            self._history.listenings.append(Listening(self._actor, port, since, until))

    def _add(self, begin: dict[str, Any], end: dict[str, Any]) -> None:
        items = begin.get("items", [])
        answers = end.get("answers") or [{}] * len(items)
        merged = [item | answer for item, answer in zip(items, answers, strict=True)]
        fields = {name: value for name, value in begin.items() if name not in {"kind", "call", "op", "at", "items"}}
        self._history.calls.append(
            Call(
                self._actor,
                begin["op"],
                begin["at"],
                end["at"],
                end["outcome"],
                merged,
                end.get("attempts", 1),
                fields | end.get("fields", {}),
            )
        )
