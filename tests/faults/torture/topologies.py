"""What stands behind the URL of a round: a server with a bad network before it, a Sentinel group, a Cluster of three.

Each says which server has the pool's data now (`server`), by which URL an actor goes, and what of a machine it has.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING, ClassVar

import redis
from servers import SENTINEL, Server, cluster, free_port, sentinel_group, wait_until

from torture.clock import Clock, library
from torture.proxy import Proxy

if TYPE_CHECKING:
    import random
    from pathlib import Path

DISK = "48m"
SETTINGS = (
    "--appendonly", "yes", "--enable-debug-command", "yes", "--aof-load-truncated", "yes",
    "--auto-aof-rewrite-percentage", "0",
)  # fmt: skip
WATCHING = SENTINEL.replace("down-after-milliseconds mymaster 500", "down-after-milliseconds mymaster 1500")
"""Long enough that a busy machine does not make the Sentinels fail over by itself."""


class Topology:
    """What all kinds have.

    Attributes:
        disk: A small file system of the server's own, or None.
        clock: The server's wall clock, or None.
    """

    name: ClassVar[str]
    disk: Path | None = None
    clock: Clock | None = None
    proxy: Proxy

    @property
    def server(self) -> Server:
        """The server that has the pool's data and takes changes of it."""
        raise NotImplementedError

    def url_for(self, number: int) -> str:
        """Return by which URL an actor of that number goes; 0 is the conductor itself."""
        raise NotImplementedError


class Standalone(Topology):
    """One server; every other actor goes through the proxy."""

    name = "standalone"

    def __init__(self, stack: contextlib.ExitStack, directory: Path, rng: random.Random, *, mounts: bool) -> None:
        if mounts:
            self.disk = _mounted(stack, directory / "disk")
        if preloaded := library():
            self.clock = Clock(directory / "clock", preloaded)
        policy = rng.choice(("always", "everysec"))
        server = Server(
            *SETTINGS, "--appendfsync", policy, directory=self.disk or directory,
            environment=self.clock and self.clock.environment(),
        )  # fmt: skip
        self._server = stack.enter_context(server).ready()
        self.proxy = stack.enter_context(Proxy(self._server.port, free_port(), rng.randrange(2**31)))

    @property
    def server(self) -> Server:
        return self._server

    def url_for(self, number: int) -> str:
        return f"redis://127.0.0.1:{self.proxy.port if number % 2 else self._server.port}"


def _mounted(stack: contextlib.ExitStack, disk: Path) -> Path:
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "torture", disk], check=True)
    stack.callback(subprocess.run, ["umount", "--lazy", disk], check=True)
    return disk


class SentinelGroup(Topology):
    """A primary, its replica and three Sentinels; which is which changes."""

    name = "sentinel"

    def __init__(self, stack: contextlib.ExitStack) -> None:
        sentinels, primary, replica = stack.enter_context(
            sentinel_group("--enable-debug-command", "yes", watching=WATCHING)
        )
        self.sentinels = sentinels
        self.pair = (primary, replica)

    @property
    def server(self) -> Server:
        for sentinel in self.sentinels:
            with contextlib.suppress(redis.RedisError, OSError), sentinel.client(socket_timeout=2.0) as client:
                _, port = client.sentinel_get_master_addr_by_name("mymaster")
                return next(one for one in self.pair if one.port == port)
        return self.pair[0]

    def url_for(self, _number: int) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}/mymaster"


class ClusterOfThree(Topology):
    """Three primaries; the pool's slot is on one of them, and moves."""

    name = "cluster"

    def __init__(self, stack: contextlib.ExitStack, slot_of: str) -> None:
        self.nodes = stack.enter_context(cluster(*SETTINGS, "--appendfsync", "always"))
        with self.nodes[0].client() as client:
            self.slot = int(client.execute_command("CLUSTER KEYSLOT", slot_of))
            self.identifiers = [node.client().execute_command("CLUSTER MYID").decode() for node in self.nodes]
        self.owner = next(number for number in range(3) if number * 5462 <= self.slot <= number * 5462 + 5461)

    @property
    def server(self) -> Server:
        return self.nodes[self.owner]

    def url_for(self, _number: int) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"


def crash(server: Server) -> bool:
    """End a server as a crash does; return whether it was there."""
    if server.process.poll() is not None:
        return False
    server.crash()
    return True


def start_again(server: Server) -> None:
    """Start a server where it is down; on a full disk it ends again."""
    if server.process.poll() is not None:
        server.start()
        wait_until(
            lambda: server.process.poll() is not None or server.client(socket_timeout=1.0).ping(),
            "the server neither answers nor ends",
        )
