"""The client processes: holders that do everything at random, keepers with the product's heartbeats, waiters.

An actor stands still when the file `stand` appears (it renews what it has and says what that is), and leaves when
`leave` appears. It may be killed or stopped at any moment; its book is all that is known of it. Only errors of the
product's own tree are caught: any other ends the actor and is a violation.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allocator import AllocatorError, Lease, LeaseLostError, PortAllocator
from allocator.client.session import make_session
from torture.history import Book
from torture.recording import RecordingStore

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "web-1"
PLUGINS = ("email", "stripe", "crm", "chat")
MOST_STALE = 12


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """The arguments of an actor.

    Attributes:
        kind: `holder`, `keeper`, `waiter`; and those of `commands`.
        database: The URL of the table of workers, or nothing.
        timeout_s: For how long Redis may be silent.
        unread: Whether its output is a pipe that is full and that nobody reads.
    """

    name: str
    kind: str
    url: str
    pool: str
    directory: str
    seed: int
    ttl_s: float
    database: str = ""
    timeout_s: float = 0.8
    unread: bool = False


@dataclass(slots=True)
class Held:
    """A lease that an actor believes it has, its sockets, and when it renews it next."""

    lease: Lease
    sockets: list[socket.socket] = field(default_factory=list)
    renew_at: float = 0.0


def listen(port: int) -> list[socket.socket]:
    """Listen on a port as workers do, on IPv4 and IPv6."""
    sockets: list[socket.socket] = []
    try:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            one = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(one)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address, port))
            one.listen()
    except OSError:
        for one in sockets:
            one.close()
        raise
    return sockets


class Client:
    """What all kinds share."""

    def __init__(self, part: ClientSpec) -> None:
        self.part = part
        self.directory = Path(part.directory)
        self.book = Book(self.directory / f"actor-{part.name}.jsonl")
        self.rng = random.Random(part.seed)
        store = RecordingStore.open(part.url, timeout_s=part.timeout_s)
        store.book = self.book
        self.ports = PortAllocator(store, make_session(part.pool, HOST, "keep"), recorder=self.recorder())
        self.turn = 0

    def recorder(self) -> Any:
        """Return what writes rows, or None."""
        if not self.part.database or self.part.kind != "keeper":
            return None
        from allocator import DatabaseRecorder

        return DatabaseRecorder.open(self.part.database, timeout=1.0)

    def stands(self) -> bool:
        return (self.directory / "stand").exists()

    def leaves(self) -> bool:
        return (self.directory / "leave").exists()

    def run_client(self) -> int:
        """Act until it has to leave; return the exit status."""
        try:
            while not self.stands():
                self.act()
            self.settle()
            while not self.leaves():
                self.keep_up()
                self.report()
                time.sleep(0.1)
            self.leave()
        except Exception:  # noqa: BLE001  # a traceback is a violation, and the book has to have it
            self.book.write("crashed", error=traceback.format_exc())
            return 70
        return 0

    def act(self) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """Come to rest; by default nothing is under way."""

    def keep_up(self) -> None:
        """Renew what is held."""

    def believed(self) -> list[tuple[int, int, bool]]:
        """Return port and fence of each lease, and whether it is listened on."""
        return []

    def leave(self) -> None:
        self.ports.close()

    def report(self) -> None:
        self.book.write("believes", at=time.monotonic(), leases=self.believed())

    def granted(self, lease: Lease) -> None:
        self.book.write("leased", at=time.monotonic(), port=lease.port, fence=lease.fence, token=lease.token)

    def bind(self, lease: Lease) -> list[socket.socket]:
        """Listen on the lease's port; enter that only after it is so.

        Raises:
            OSError: When the kernel refuses.
        """
        sockets = listen(lease.port)
        self.book.write("bound", at=time.monotonic(), port=lease.port)
        return sockets

    def unbind(self, port: int, sockets: list[socket.socket]) -> None:
        """Let go of the port; enter that before it is so."""
        if not sockets:
            return
        self.book.write("closing", at=time.monotonic(), port=port)
        for one in sockets:
            one.close()
        sockets.clear()

    def worker(self) -> dict[str, Any]:
        """Return a worker's name: this actor's, sometimes one that it had before."""
        self.turn += 1
        instance = self.rng.randrange(8) if self.rng.random() < 0.4 else self.turn
        return {"plugin": self.rng.choice(PLUGINS), "org": self.part.name, "instance": instance}


class Holder(Client):
    """Claims, binds or not, renews or not, gives back, declines, and tries what it may no longer do."""

    def __init__(self, part: ClientSpec) -> None:
        super().__init__(part)
        self.held: dict[str, Held] = {}
        self.stale: list[Lease] = []
        self.most = self.rng.choice((2, 3, 4))

    def act(self) -> None:
        time.sleep(self.rng.uniform(0.002, 0.03))
        with contextlib.suppress(AllocatorError):
            self.renew_due()
        choices: list[tuple[float, Callable[[], None]]] = [
            (4.0 if len(self.held) < self.most else 0.0, self.claim),
            (1.2, self.release),
            (0.05, self.decline),
            (0.7, self.forget),
            (0.8, self.misuse),
            (0.7, self.rest),
        ]
        weights = [weight for weight, _ in choices]
        with contextlib.suppress(AllocatorError):
            self.rng.choices([one for _, one in choices], weights)[0]()

    def rest(self) -> None:
        time.sleep(self.rng.uniform(0.0, 0.15))

    def claim(self) -> None:
        arguments = self.worker()
        if self.rng.random() < 0.1 and self.stale:
            arguments["port"] = self.rng.choice(self.stale).port
        lease = self.ports.claim(**arguments, ttl=self.part.ttl_s, wait=self.rng.choice((None, None, 0.4)))
        self.granted(lease)
        held = Held(lease)
        if self.rng.random() < 0.7:
            try:
                held.sockets = self.bind(lease)
            except OSError as error:
                self.book.write("bind_failed", at=time.monotonic(), port=lease.port, error=str(error))
                self.stale.append(lease)
                self.ports.decline(lease)
                return
        self.plan(held)
        self.held[lease.token or ""] = held

    def plan(self, held: Held) -> None:
        held.renew_at = time.monotonic() + self.part.ttl_s * self.rng.uniform(0.2, 0.5)

    def renew_due(self) -> None:
        now = time.monotonic()
        due = [held for held in self.held.values() if held.renew_at <= now]
        if due:
            self.renew(due)

    def renew(self, due: list[Held]) -> None:
        from allocator.operations.renew import renew

        rewrite = self.rng.random() < 0.1
        for held in due:
            held.renew_at = time.monotonic() + self.part.ttl_s * 0.05
        outcomes = self.ports.run(renew(self.ports.session.context, [held.lease for held in due], rewrite=rewrite))
        for held, outcome in zip(due, outcomes, strict=True):
            held.lease = outcome.lease
            self.plan(held)
            if outcome.lost:
                self.drop(held)

    def drop(self, held: Held) -> None:
        """Let go of what is not ours any more, and remember its token for a misuse."""
        self.unbind(held.lease.port, held.sockets)
        self.held.pop(held.lease.token or "", None)
        self.stale = [*self.stale, held.lease][-MOST_STALE:]

    def one_of(self) -> Held | None:
        return self.rng.choice(list(self.held.values())) if self.held else None

    def release(self) -> None:
        if held := self.one_of():
            self.drop(held)
            self.ports.release(held.lease)

    def decline(self) -> None:
        if held := self.one_of():
            self.drop(held)
            self.ports.decline(held.lease)

    def forget(self) -> None:
        """Stop renewing, as a worker that hangs: its socket may stay open for a while."""
        held = self.one_of()
        if held is None:
            return
        if self.rng.random() < 0.5:
            self.drop(held)
        else:
            held.renew_at = time.monotonic() + self.part.ttl_s * self.rng.uniform(0.8, 3.0)

    def misuse(self) -> None:
        """Use a token again that was given back, lost or left to run out."""
        if not self.stale:
            return
        lease = self.rng.choice(self.stale)
        use = self.rng.random()
        if use < 0.45:
            self.ports.release(lease)
        elif use < 0.55:
            self.ports.decline(lease)
        else:
            with contextlib.suppress(LeaseLostError):
                (renewed,) = self.ports.renew(lease)
                self.stale.remove(lease)  # nobody had it meanwhile: it is ours again
                held = Held(renewed)
                self.plan(held)
                self.held[renewed.token or ""] = held

    def keep_up(self) -> None:
        with contextlib.suppress(AllocatorError):
            self.renew_due()

    def believed(self) -> list[tuple[int, int, bool]]:
        return [(held.lease.port, held.lease.fence, bool(held.sockets)) for held in self.held.values()]

    def leave(self) -> None:
        for held in list(self.held.values()):
            self.unbind(held.lease.port, held.sockets)
            with contextlib.suppress(AllocatorError):
                self.ports.release(held.lease)
        super().leave()


class Keeper(Client):
    """Holds leases by the product's own heartbeats, each with its sockets, and goes on in doubt."""

    def __init__(self, part: ClientSpec) -> None:
        super().__init__(part)
        self.held: list[tuple[Any, list[socket.socket], float]] = []
        self.most = self.rng.choice((1, 2, 3))

    def act(self) -> None:
        time.sleep(self.rng.uniform(0.02, 0.1))
        self.let_lost_go()
        now = time.monotonic()
        for one in [one for one in self.held if one[2] <= now]:
            self.end_held(one)
        if len(self.held) < self.most and self.rng.random() < 0.3:
            with contextlib.suppress(AllocatorError):
                self.claim()

    def claim(self) -> None:
        record = self.ports.recorder is not None and self.rng.random() < 0.5
        wait = self.rng.choice((None, 1.0))
        lease = self.ports.claim(**self.worker(), ttl=self.part.ttl_s, wait=wait, record=record)
        self.granted(lease)
        held = self.ports.start_heartbeats(lease)
        try:
            sockets = self.bind(lease)
        except OSError as error:
            self.book.write("bind_failed", at=time.monotonic(), port=lease.port, error=str(error))
            self.ports.end_held(held, declined=True)
            return
        self.held.append((held, sockets, time.monotonic() + self.rng.uniform(2.0, 15.0)))

    def let_lost_go(self) -> None:
        for one in [one for one in self.held if one[0].lost.is_set()]:
            self.held.remove(one)
            self.unbind(one[0].port, one[1])

    def end_held(self, one: tuple[Any, list[socket.socket], float]) -> None:
        self.held.remove(one)
        self.unbind(one[0].port, one[1])
        self.ports.end_held(one[0])

    def keep_up(self) -> None:
        self.let_lost_go()

    def believed(self) -> list[tuple[int, int, bool]]:
        return [(held.port, held.fence, True) for held, _, _ in self.held]

    def leave(self) -> None:
        for one in list(self.held):
            self.end_held(one)
        super().leave()


class Waiter(Client):
    """Waits in line for any port, has it for a moment, gives it back."""

    def __init__(self, part: ClientSpec) -> None:
        super().__init__(part)
        self.pause = threading.Event()

    def act(self) -> None:
        self.turn += 1
        try:
            lease = self.ports.claim(
                self.rng.choice(PLUGINS), org=self.part.name, instance=self.turn, ttl=self.part.ttl_s,
                wait=self.rng.uniform(1.0, 5.0),
            )  # fmt: skip
        except AllocatorError:
            self.pause.wait(self.rng.uniform(0.0, 0.2))
            return
        self.granted(lease)
        try:
            sockets = self.bind(lease)
        except OSError as error:
            self.book.write("bind_failed", at=time.monotonic(), port=lease.port, error=str(error))
            with contextlib.suppress(AllocatorError):
                self.ports.decline(lease)
            return
        self.pause.wait(self.rng.uniform(0.02, 0.4))
        self.unbind(lease.port, sockets)
        with contextlib.suppress(AllocatorError):
            self.ports.release(lease)


COMMANDS = frozenset({"supervisor", "reconciler", "agent"})
KINDS = {"holder": Holder, "keeper": Keeper, "waiter": Waiter}


def run_client(part: ClientSpec) -> int:
    """Play one part in this process; return its exit status."""
    if part.kind in COMMANDS:
        from torture import commands

        return commands.run_client(part)
    if part.kind == "bound":
        from torture import commands

        return commands.BoundProcess(part).run_client()
    return KINDS[part.kind](part).run_client()
