"""Client processes: started once, told what to do, released together by a barrier, and done after a set time."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from benchmarks.peers.contract import OutOfTimeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from threading import Barrier

    from benchmarks.peers.contract import Client, Peer

MOST_S = 12
"""A client that has not finished one claim may go on for so many times the set time."""
WARM_S = 0.05
START_S = 60.0


@dataclass(frozen=True)
class Order:
    """What one client does next: claim from a peer and give back, for so long and so often at most.

    With `most` 0 it only gets ready for it. After a refusal it asks again when `pause_s` have passed.
    """

    peer: int
    clients: int
    seconds: float
    most: int
    pause_s: float


@dataclass(frozen=True)
class Done:
    """What one client did.

    Attributes:
        pairs: Claims that were granted and given back.
        refused: Claims that were refused; a part of one where the time did not do.
        began: When it began, by `time.perf_counter`.
        ended: When it ended.
        error: Why it stopped early, or an empty string.
    """

    pairs: float
    refused: float
    began: float
    ended: float
    error: str = ""


class Crowd:
    """Processes that are clients of any of some peers.

    Args:
        peers: The peers; they have to be prepared before an order names them.
        sizes: How many clients may have to begin together: one barrier each.
    """

    def __init__(self, peers: Sequence[Peer], sizes: Sequence[int]) -> None:
        context = multiprocessing.get_context("fork")
        self._barriers = {size: context.Barrier(size) for size in sizes}
        self._ends: list[Connection] = []
        self._processes: list[Any] = []
        gc.freeze()
        for number in range(max(sizes)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, number, peers, self._barriers), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.send(None)
        for process in self._processes:
            process.join(START_S)
            if process.is_alive():
                process.kill()
                process.join()
        gc.unfreeze()

    def get_ready(self, order: Order) -> str:
        """Let the processes that an order is for connect and claim once; return why one could not, or nothing."""
        done = self._send(replace(order, most=0))
        return next((one.error for one in done if one.error), "")

    def carry_out(self, order: Order) -> list[Done]:
        """Let the first `clients` processes carry out an order, for which they are ready; return what each did."""
        return self._send(order)

    def _send(self, order: Order) -> list[Done]:
        chosen = self._ends[: order.clients]
        for end in chosen:
            end.send(order)
        return [end.recv() for end in chosen]


def _serve(end: Connection, number: int, peers: Sequence[Peer], barriers: dict[int, Barrier]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    client: Client | None = None
    of: int | None = None
    while True:
        try:
            order: Order | None = end.recv()
        except EOFError:
            order = None
        if client and (order is None or of != order.peer):
            client.close()
            client = None
        if order is None:
            os._exit(0)
        of = order.peer
        if order.most == 0 or client is None:
            client, error = _ready_client(client, peers[order.peer], number)
            end.send(Done(0, 0, 0, 0, error))
            continue
        client.ready(order.most)
        barriers[order.clients].wait(START_S)
        end.send(work(client, order))


def _ready_client(client: Client | None, peer: Peer, number: int) -> tuple[Client | None, str]:
    try:
        client = client or peer.client(number)
        warm(client)
    except Exception as problem:  # noqa: BLE001  # a peer that fails is a row that says so
        return None, _reported(problem)
    return client, ""


def warm(client: Client) -> None:
    """Claim and release once, untimed: connections are made and scripts loaded."""
    client.ready(1)
    with contextlib.suppress(OutOfTimeError):
        lease = client.claim(time.perf_counter() + WARM_S)
        if lease is not None:
            client.release(lease)


def work(client: Client, order: Order) -> Done:
    """Claim and release until the time is over, `most` times at most, but once at least."""
    pairs = refused = 0.0
    error = ""
    began = time.perf_counter()
    until, latest = began + order.seconds, began + MOST_S * order.seconds
    try:
        while pairs + refused < order.most and (pairs + refused == 0 or time.perf_counter() < until):
            lease = client.claim(latest)
            if lease is None:
                refused += 1
                if order.pause_s:
                    time.sleep(order.pause_s)
            else:
                client.release(lease)
                pairs += 1
    except OutOfTimeError as late:
        refused += late.done
    except Exception as problem:  # noqa: BLE001  # as above
        error = _reported(problem)
    return Done(pairs, refused, began, time.perf_counter(), error)


def _reported(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:160]
