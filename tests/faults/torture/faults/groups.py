"""Faults of servers that stand together: failovers that lose what was confirmed, slots that move, nodes that go."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import redis
from servers import wait_until

from torture import topologies
from torture.faults import Fault, NothingToDoError

if TYPE_CHECKING:
    from servers import Server

    from torture.topologies import ClusterOfThree, SentinelGroup

KEYS_AT_ONCE = 3


class Failover(Fault):
    """The replica's link is cut, so that it misses what is confirmed from then on; then the primary crashes."""

    name = "Sentinel failover that loses writes"
    topologies = frozenset({"sentinel"})
    seconds = (0.2, 2.0)
    lossy = True

    def does(self) -> None:
        self.group: SentinelGroup = self.arena.topology
        if not self.arena.failing_over.acquire(blocking=False):
            raise NothingToDoError
        self.primary = self.group.server
        self.replica = next(one for one in self.group.pair if one is not self.primary)
        try:
            wait_until(self._is_in_step, "the replica does not follow")
            self.loses_since = time.monotonic()
            with self.primary.client(socket_timeout=3.0) as client:
                client.execute_command("ACL", "SETUSER", "default", "-psync")
                client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        except (AssertionError, redis.RedisError, OSError) as error:
            self.arena.failing_over.release()
            raise NothingToDoError(str(error)) from error

    def _is_in_step(self) -> bool:
        with self.replica.client(socket_timeout=1.0) as client:
            return client.info("replication")["master_link_status"] == "up"

    def undoes(self) -> None:
        try:
            self.take_away()
            wait_until(lambda: self.group.server is self.replica and _role(self.replica) == "master", "no failover")
            self.give_back()
            wait_until(lambda: _role(self.primary) == "slave", "the old primary does not step down")
        finally:
            self.arena.failing_over.release()

    def take_away(self) -> None:
        self.primary.crash()

    def give_back(self) -> None:
        topologies.start_again(self.primary)


class SplitBrain(Failover):
    """The primary is stopped instead, and goes on as one after another was made primary, until it is told."""

    name = "Sentinel failover with two primaries"

    def take_away(self) -> None:
        os.kill(self.primary.process.pid, signal.SIGSTOP)

    def give_back(self) -> None:
        os.kill(self.primary.process.pid, signal.SIGCONT)
        with suppress(redis.RedisError, OSError), self.primary.client(socket_timeout=3.0) as client:
            client.execute_command("ACL", "SETUSER", "default", "+psync")


class LoseSentinel(Fault):
    name = "SIGKILL of a Sentinel"
    topologies = frozenset({"sentinel"})
    seconds = (0.2, 3.0)

    def does(self) -> None:
        self.sentinel = self.rng.choice(self.arena.topology.sentinels)
        if not topologies.crash(self.sentinel):
            raise NothingToDoError

    def undoes(self) -> None:
        topologies.start_again(self.sentinel)


class MoveSlot(Fault):
    """The pool's slot goes to another node, a few keys at a time, while it is used."""

    name = "Cluster slot migration"
    topologies = frozenset({"cluster"})
    seconds = (0.0, 0.0)

    def does(self) -> None:
        group: ClusterOfThree = self.arena.topology
        if not self.arena.failing_over.acquire(blocking=False):
            raise NothingToDoError
        try:
            target = self.rng.choice([number for number in range(3) if number != group.owner])
            self._move(group, group.nodes[group.owner], group.nodes[target], target)
        finally:
            self.arena.failing_over.release()

    def _move(self, group: ClusterOfThree, source: Server, other: Server, target: int) -> None:
        slot, identifiers = group.slot, group.identifiers
        _order(other, "CLUSTER", "SETSLOT", slot, "IMPORTING", identifiers[group.owner])
        _order(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", identifiers[target])
        while keys := _order(source, "CLUSTER", "GETKEYSINSLOT", slot, KEYS_AT_ONCE):
            _order(source, "MIGRATE", "127.0.0.1", other.port, "", 0, 5_000, "REPLACE", "KEYS", *keys)
            time.sleep(self.rng.uniform(0.0, 0.03))
        for node in (other, source, *group.nodes):
            _order(node, "CLUSTER", "SETSLOT", slot, "NODE", identifiers[target])
        group.owner = target


class LoseNode(Fault):
    """A node that has not the pool's data goes, and with it the whole Cluster's readiness."""

    name = "SIGKILL of another node of the Cluster"
    topologies = frozenset({"cluster"})
    seconds = (0.2, 4.0)

    def does(self) -> None:
        group: ClusterOfThree = self.arena.topology
        if not self.arena.failing_over.acquire(blocking=False):
            raise NothingToDoError
        self.node = self.rng.choice([node for node in group.nodes if node is not group.server])
        topologies.crash(self.node)

    def undoes(self) -> None:
        topologies.start_again(self.node)
        self.arena.failing_over.release()


def _order(server: Server, *arguments: object) -> list[bytes]:
    """Give an order until the server takes it: it may be down or paused just now."""
    found: list[bytes] = []

    def taken() -> bool:
        with server.client(socket_timeout=6.0) as client:
            answer = client.execute_command(*arguments)
        found[:] = answer if isinstance(answer, list) else []
        return True

    wait_until(taken, f"{arguments} was not taken")
    return found


def _role(server: Server) -> str:
    with server.client(socket_timeout=1.0) as client:
        return str(client.info("replication")["role"])


FAULTS = (Failover, SplitBrain, LoseSentinel, MoveSlot, LoseNode)
