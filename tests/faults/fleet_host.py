"""Fifty hosts as processes, each in a network namespace of its own where that is allowed: random claims with real
binds, renewals and releases.

Usage: fleet_host.py URL POOL HOSTS SECONDS (limits|line). Ends with 1 when a host saw what must never be.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import socket
import sys
import time
from dataclasses import replace

import redis  # noqa: F401  # imported before the forks, not by each of them

from allocator import AllocatorError, Lease, LeaseLostError, LeaseState, PortAllocator
from allocator.kernel.answers import Answers, UnseenAnswers
from allocator.operations import queue  # noqa: F401  # as above

CLONE_NEWNET = 0x40000000
TTL_S = 1.5
QUEUE_TTL_S = 5.0
MOST_HELD = 50


def leave_network() -> bool:
    """Enter a network namespace of this process's own; return whether that was allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    return hasattr(libc, "unshare") and libc.unshare(CLONE_NEWNET) == 0


class Host:
    """One host: what it holds, and what it does next."""

    def __init__(self, ports: PortAllocator, number: int, address: str, way: str) -> None:
        self.ports, self.number, self.address, self.way = ports, number, address, way
        self.rng = random.Random(number)
        self.held: dict[int, tuple[Lease, socket.socket]] = {}
        self.wrong = self.turn = 0

    def act(self) -> None:
        self.turn += 1
        choice = self.rng.random()
        try:
            if choice < 0.55 and len(self.held) < MOST_HELD:
                self.claim()
            elif choice < 0.8 and self.held:
                self.renew(rewrite=choice > 0.75)
            elif self.held:
                lease, one = self.held.pop(self.rng.choice(list(self.held)))
                one.close()
                self.ports.release(lease)
        except LeaseLostError as lost:  # it was not renewed in time, as a busy machine has it
            if gone := self.held.pop(lost.port or 0, None):
                gone[1].close()
        except AllocatorError:
            time.sleep(self.rng.uniform(0.0, 0.02))

    def claim(self) -> None:
        lease = self.ports.claim(
            self.rng.choice(["email", "stripe", "crm", "chat"]),
            org=f"org-{self.rng.randrange(12)}",
            instance=self.number * 1_000 + self.turn % 1_000,
            ttl=TTL_S if self.way == "limits" else QUEUE_TTL_S,
            wait=self.rng.choice([None, 0.3]) if self.way == "limits" else 0.5,
        )
        try:
            self.held[lease.port] = lease, socket.create_server((self.address, lease.port))
        except OSError as error:
            print(f"{lease.address} was granted but is bound: {error}", flush=True)
            self.wrong += 1
            self.ports.decline(lease)

    def renew(self, *, rewrite: bool) -> None:
        leases = [lease for lease, _ in self.held.values()]
        if rewrite:
            leases = [replace(lease, state=LeaseState.READY) for lease in leases]
        for lease in self.ports.renew(*leases, rewrite=rewrite):
            self.held[lease.port] = lease, self.held[lease.port][1]

    def leave(self) -> None:
        for lease, one in self.held.values():
            one.close()
            with contextlib.suppress(AllocatorError):
                self.ports.release(lease)


def act_as_host(url: str, pool: str, number: int, seconds: float, way: str) -> int:
    apart = leave_network()
    if apart:
        os.system("ip link set lo up 2>/dev/null")
    with PortAllocator.from_url(url, pool=pool, host=f"host-{number:02}") as ports:
        ports.session.answers = Answers() if apart else UnseenAnswers()
        ports.session.identity = f"machine-{number} boot net"
        host = Host(ports, number, "127.0.0.1" if apart else f"127.0.1.{number + 1}", way)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            host.act()
        host.leave()
    return host.wrong


def main() -> int:
    url, pool, hosts, seconds, way = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
    children = []
    for number in range(hosts):
        child = os.fork()
        if child == 0:
            try:
                os._exit(min(1, act_as_host(url, pool, number, seconds, way)))
            except BaseException as error:  # noqa: BLE001  # a forked child says it and ends
                print(f"host-{number:02}: {error!r}", flush=True)
                os._exit(1)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main())
