"""Peers side by side: every pool size and fill, with 1, 8 and 64 clients, the peers taking turns."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis

from benchmarks.peers import locks, ours, pools, single_host
from benchmarks.peers.contract import Peer, Ports
from benchmarks.peers.crowd import Crowd, Done, Order
from benchmarks.servers import server
from benchmarks.timing import Spread

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS: tuple[type[Peer], ...] = (*ours.ALL, *pools.ALL, *locks.ALL, *single_host.ALL)
SMALL, LARGE = Ports(5_556, 44), Ports(2_000, 60_000)
FILLS = (0, 50, 95, 100)
CLIENTS = (1, 8, 64)
CLAIMS_AT_MOST = {1: 60, 8: 30, 64: 8}
"""For each client where a claim needs a process of its own, which waits before the clock starts."""
SLOW = 2.0
"""A peer with fewer pairs a second is measured once and not with more clients: that would take minutes."""
REFUSED_PAUSE_S = 0.01
"""Clients that ask again at once keep the processor from those that hold a port: more, the faster they are refused."""
ENOUGH_LEASES = 10_000
"""With fewer, the server's own buffers are as large as what the leases take."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    sizes: tuple[Ports, ...]
    clients: tuple[int, ...]
    seconds: float
    rounds: int


FULL = Plan((SMALL, LARGE), CLIENTS, 0.25, 4)
QUICK = Plan((SMALL, Ports(2_000, 2_000)), (1, 4), 0.08, 2)


@dataclass
class Cell:
    """What one peer did at one size and fill with so many clients, a figure a round.

    Attributes:
        rates: Claims with their releases a second; refusals a second where the pool is full.
        refused: The part of the claims that was refused although ports were free.
        trips: Round trips of a claim and its release.
        server_us: The server's processor time for them, in microseconds, all included.
        error: Why there are no figures.
    """

    rates: list[float] = field(default_factory=list)
    refused: float = 0.0
    trips: float | None = None
    server_us: float | None = None
    error: str = ""

    @property
    def rate(self) -> Spread | None:
        """The rate over all rounds; None where nothing was measured."""
        if not self.rates or self.error:
            return None
        return Spread.of(self.rates if len(self.rates) > 1 else self.rates * 2)


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return all cells, by size, fill, clients and peer; and what a lease takes in memory."""
    plan = QUICK if quick else FULL
    found: dict[str, Any] = {"plan": plan, "cells": [], "memory": {}}
    with server(binary) as address:
        for ports in plan.sizes:
            peers = [kind(address["unix"], ports) for kind in KINDS]
            try:
                with Crowd(peers, plan.clients) as crowd:
                    found["cells"] += _size(peers, crowd, address["unix"], plan, found["memory"])
            finally:
                for peer in peers:
                    peer.close()
            Redis.from_url(address["unix"]).flushall()
    return found


def _size(peers: Sequence[Peer], crowd: Crowd, url: str, plan: Plan, memory: dict[str, float]) -> list[dict[str, Any]]:
    redis: Any = Redis.from_url(url, protocol=2)
    cells: list[dict[str, Any]] = []
    broken: dict[int, str] = {}
    for at, peer in enumerate(peers):
        _try(broken, at, peer.prepare)
    for fill in FILLS:
        for at, peer in enumerate(peers):
            count = peer.ports.size * fill // 100
            before, had = redis.info("memory")["used_memory"], peer.filled
            _try(broken, at, lambda peer=peer, count=count: peer.fill(count))
            if fill == 50 and peer.on_redis and at not in broken and count >= ENOUGH_LEASES:
                memory[peer.name] = (redis.info("memory")["used_memory"] - before) / (count - had)
        slow: set[int] = set()
        for clients in plan.clients:
            taking_part = [at for at, peer in enumerate(peers) if clients <= peer.most_clients and at not in slow]
            row = _compare(peers, crowd, redis, plan, clients, fill, {at: broken.get(at, "") for at in taking_part})
            slow |= {at for at, cell in row.items() if cell.rates and max(cell.rates) < SLOW}
            cells += [
                {"ports": peers[at].ports.size, "fill": fill, "clients": clients, "peer": peers[at].name, "cell": cell}
                for at, cell in row.items()
            ]
    redis.close()
    return cells


def _try(broken: dict[int, str], at: int, action: Any) -> None:
    try:
        action()
    except Exception as problem:  # noqa: BLE001  # a peer that fails is a row that says so
        broken[at] = f"{type(problem).__name__}: {problem}".splitlines()[0][:160]


def _compare(
    peers: Sequence[Peer], crowd: Crowd, redis: Any, plan: Plan, clients: int, fill: int, taking_part: dict[int, str]
) -> dict[int, Cell]:
    cells = {at: Cell(error=error) for at, error in taking_part.items()}
    full = fill == 100
    print(f"peers: {peers[0].ports.size} ports, {fill} % full, {clients} clients", file=sys.stderr, flush=True)
    for number in range(plan.rounds):
        for at in reversed(cells) if number % 2 else cells:
            cell = cells[at]
            if cell.error or (cell.rates and cell.rates[-1] < SLOW):
                continue  # it fails, or one more round of it would take longer than those of all others
            most = 1_000_000 if peers[at].on_redis else CLAIMS_AT_MOST.get(clients, 8)
            order = Order(at, clients, plan.seconds, most, 0.0 if full else REFUSED_PAUSE_S)
            cell.error = crowd.get_ready(order)
            if cell.error:
                continue
            before = _spent(redis)
            done = crowd.carry_out(order)
            after = _spent(redis)
            _enter(cell, done, full=full)
            if clients == 1 and peers[at].on_redis and not cell.error:
                count = done[0].pairs + done[0].refused
                cell.trips = (after[0] - before[0] - 1) / count
                cell.server_us = (after[1] - before[1]) * 1e6 / count
    return cells


def _spent(redis: Any) -> tuple[float, float]:
    """Return how often the server has read from a client, and the processor time of its main thread in seconds.

    The scheduler's own account, where there is one: what a process is told of itself may be in ticks of a clock.
    """
    info = redis.info()
    try:
        ran_ns = int(Path(f"/proc/{info['process_id']}/schedstat").read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        used = info.get("used_cpu_user_main_thread", info["used_cpu_user"])
        ran_ns = (used + info.get("used_cpu_sys_main_thread", info["used_cpu_sys"])) * 1e9
    return float(info["total_reads_processed"]), ran_ns / 1e9


def _enter(cell: Cell, done: Sequence[Done], *, full: bool) -> None:
    cell.error = next((one.error for one in done if one.error), "")
    took = max(one.ended for one in done) - min(one.began for one in done)
    pairs, refused = sum(one.pairs for one in done), sum(one.refused for one in done)
    if cell.error or took <= 0:
        return
    cell.rates.append((refused if full else pairs) / took)
    if not full:
        cell.refused = max(cell.refused, refused / max(1.0, pairs + refused))
