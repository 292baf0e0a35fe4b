"""Sentinel and Cluster, through redis-py: the only module that imports it.

Both clients answer as a `ConnectionPool` does: replies as they came, an error reply as a `ReplyError`, the rest as an
`OSError`. They retry nothing by themselves and read from primaries only.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from allocator.model.redis_urls import Topology
from allocator.store.direct import CLIENT_NAME, ForeignReplyError, ReplyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from allocator.model.redis_urls import StoreAddress
    from allocator.store.direct import Command, CommandPart

_CODES = {
    exceptions.NoScriptError: "NOSCRIPT",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
    exceptions.MovedError: "MOVED",
    exceptions.AskError: "ASK",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
}
"""The codes of error replies, which redis-py takes away; a subclass stands before its class."""

_PASSING = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ClusterError)
_GONE = ("Redis Cluster cannot be connected", "All slots are not covered")
"""How redis-py begins to state that it found no node of a Cluster."""


class RedisPyClient:
    """A blocking client of a Sentinel group or a Cluster.

    Args:
        address: Where its servers are.
        timeout_s: For how many seconds one of them may be silent.
    """

    def __init__(self, address: StoreAddress, timeout_s: float) -> None:
        self.is_cluster = address.topology is Topology.CLUSTER
        with _errors():
            self._client = _connect(address, timeout_s)

    def execute(self, *parts: CommandPart) -> Any:  # noqa: ANN401  # a reply is whatever the server answers
        """Send a command and return its reply; see `ConnectionPool.execute`."""
        with _errors():
            return _as_sent(str(parts[0]), self._client.execute_command(*parts))

    def execute_together(self, key: str, commands: Sequence[Command]) -> list[Any]:
        """Send commands over one connection to the server that has `key`; an error reply comes as a value."""
        with _errors():
            pipeline = self._client_of(key).pipeline(transaction=False)
            for parts in commands:
                pipeline.execute_command(*parts)
            return [_meant(reply) for reply in pipeline.execute(raise_on_error=False)]

    def _client_of(self, key: str) -> Any:  # noqa: ANN401  # redis-py's
        if not self.is_cluster:
            return self._client
        self._client.exists(key)  # follows the key where a failover or a moved slot took it; a pipeline would not
        return self._client.get_node_from_key(key).redis_connection

    def key_names(self, pattern: str) -> Iterator[bytes]:
        """Return the names of the keys that match, on all primaries."""
        with _errors():
            yield from self._client.scan_iter(match=pattern, count=1_000)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncRedisPyClient:
    """The same for asyncio."""

    def __init__(self, address: StoreAddress, timeout_s: float) -> None:
        self.is_cluster = address.topology is Topology.CLUSTER
        self._nodes: dict[str, Any] = {}
        with _errors():
            self._client = _connect_async(address, timeout_s)

    async def execute(self, *parts: CommandPart) -> Any:  # noqa: ANN401  # a reply is whatever the server answers
        """Send a command and return its reply; see `ConnectionPool.execute`."""
        with _errors():
            return _as_sent(str(parts[0]), await self._client.execute_command(*parts))

    async def execute_together(self, key: str, commands: Sequence[Command]) -> list[Any]:
        """Send commands over one connection to the server that has `key`; an error reply comes as a value."""
        with _errors():
            pipeline = (await self._client_of(key)).pipeline(transaction=False)
            for parts in commands:
                pipeline.execute_command(*parts)
            return [_meant(reply) for reply in await pipeline.execute(raise_on_error=False)]

    async def _client_of(self, key: str) -> Any:  # noqa: ANN401  # redis-py's
        """Return a client of the one node: the Cluster's own may send each command over another connection."""
        if not self.is_cluster:
            return self._client
        await self._client.exists(key)  # as above
        node = self._client.get_node_from_key(key)
        if node.name not in self._nodes:
            from redis.asyncio import ConnectionPool, Redis

            pool = ConnectionPool(node.connection_class, **node.connection_kwargs)
            self._nodes[node.name] = Redis.from_pool(pool)
        return self._nodes[node.name]

    async def key_names(self, pattern: str) -> AsyncIterator[bytes]:
        """Return the names of the keys that match, on all primaries."""
        with _errors():
            async for name in self._client.scan_iter(match=pattern, count=1_000):
                yield name

    async def close(self) -> None:
        """Close the connections."""
        for name in list(self._nodes):
            await self._nodes.pop(name).aclose()
        await self._client.aclose()


@contextmanager
def _errors() -> Iterator[None]:
    """Raise what redis-py raises as a direct connection would."""
    try:
        yield
    except (exceptions.RedisError, exceptions.RedisClusterException) as error:
        raise _meant(error) from error


def _meant(reply: Any) -> Any:  # noqa: ANN401  # a reply is whatever the server answers
    """Return an error of redis-py as that of a direct connection; any other reply as it is."""
    if not isinstance(reply, exceptions.RedisError | exceptions.RedisClusterException):
        return reply
    text = str(reply)
    if isinstance(reply, exceptions.InvalidResponse):
        return ForeignReplyError(text)
    for kind, code in _CODES.items():
        if isinstance(reply, kind):
            return ReplyError(f"{code} {text}")
    refused = next((sign for sign in ("NOAUTH", "WRONGPASS") if sign in text), None)
    if refused or isinstance(reply, exceptions.AuthenticationError):
        return ReplyError(f"{refused or 'NOAUTH'} {text}")
    if isinstance(reply, _PASSING) or text.startswith(_GONE):
        return ConnectionError(text)
    return ReplyError(text)


def _as_sent(command: str, reply: Any) -> Any:  # noqa: ANN401  # as above
    """Return the rows of a stream as the server sends them; redis-py makes dictionaries of them."""
    if command == "XREAD":
        return [[stream, _rows_as_sent(rows)] for stream, rows in reply] or None
    return _rows_as_sent(reply) if command == "XREVRANGE" else reply


def _rows_as_sent(rows: Any) -> list[Any]:  # noqa: ANN401  # redis-py's
    return [[identifier, [part for pair in (fields or {}).items() for part in pair]] for identifier, fields in rows]


def _options(address: StoreAddress, timeout_s: float, *, to_sentinels: bool = False) -> dict[str, Any]:
    """Return what connections are made with; a Sentinel has a quarter of the time, so that one may be dead."""
    seconds = timeout_s / 4 if to_sentinels else timeout_s
    username = address.sentinel_username if to_sentinels else address.username
    password = address.sentinel_password if to_sentinels else address.password
    options: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "protocol": 2,
        "client_name": address.client_name or CLIENT_NAME,
        # No CLIENT SETINFO: two more ways to the server for each connection, and for a user with least rights an entry
        # of ACL LOG each, for the right cannot be given in a file that Redis 7.0 reads as well.
        "driver_info": None,
    }
    options |= {"username": username} if username else {}
    options |= {"password": password} if password else {}
    return options | ({"ssl": True, **address.ssl_options} if address.tls else {})


def _connect(address: StoreAddress, timeout_s: float) -> Any:  # noqa: ANN401  # one of two client classes
    options = _options(address, timeout_s)
    if address.topology is Topology.CLUSTER:
        from redis.cluster import ClusterNode, RedisCluster

        nodes: list[Any] = [ClusterNode(*node) for node in address.nodes]  # type: ignore[no-untyped-call]  # redis-py's
        return RedisCluster(startup_nodes=nodes, **options)
    from redis.sentinel import Sentinel

    to_sentinels = _options(address, timeout_s, to_sentinels=True)
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]  # redis-py's
        list(address.nodes), sentinel_kwargs=to_sentinels, **options
    )
    return sentinel.master_for(address.service, db=address.database, retry=Retry(NoBackoff(), 0))


def _connect_async(address: StoreAddress, timeout_s: float) -> Any:  # noqa: ANN401  # as above
    from redis.asyncio.retry import Retry as AsyncRetry

    options = _options(address, timeout_s)
    if address.topology is Topology.CLUSTER:
        from redis.asyncio.cluster import ClusterNode, RedisCluster

        return RedisCluster(startup_nodes=[ClusterNode(*node) for node in address.nodes], **options)
    from redis.asyncio.sentinel import Sentinel

    to_sentinels = _options(address, timeout_s, to_sentinels=True)
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]  # redis-py's
        list(address.nodes), sentinel_kwargs=to_sentinels, **options
    )
    return sentinel.master_for(address.service, db=address.database, retry=AsyncRetry(NoBackoff(), 0))
