"""`BaseStore`: the address of Redis, the check of the server, and the commands that both kinds of store send.

`Store` calls and `AsyncStore` awaits; everything else is here. Their client is a pool of connections to one server, or
redis-py's client of a Sentinel group or a Cluster; all answer alike. The embedded server is used only where no setting
names a Redis, and a command that only reads never starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from allocator.model.errors import ConfigurationError, StoreUnavailableError
from allocator.model.log import warn_once
from allocator.model.names import is_name
from allocator.model.redis_urls import parse_store_url, redacted
from allocator.model.values import Value
from allocator.protocol.keys import pool_of_key
from allocator.protocol.wire import PREFIX, text
from allocator.store.direct import ReplyError, fields_of
from allocator.store.translate import is_transient, translate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from allocator.model.errors import AllocatorError
    from allocator.model.redis_urls import StoreAddress
    from allocator.model.settings import Settings
    from allocator.operations.steps import AwaitTurn
    from allocator.protocol.wire import ScriptCall
    from allocator.store.direct import Command
    from allocator.store.embedded.server import EmbeddedStatus

S = TypeVar("S", bound="BaseStore")
OLDEST_REDIS = (6, 2)
"""The first with `ZADD … LT` for all, `ZMSCORE` and `XADD … MAXLEN ~` trimmed as the scripts expect."""

Event = tuple[str, dict[str, str]]

POOL_KEYS = PREFIX + "{*}"
ALL_KEYS = PREFIX + "*"
"""What the keys of the pools themselves look like."""

EVENTS_AT_ONCE = 1_000
"""Events read in one call by a reader that waits only for the newest."""


class ServerInfo(Value, kw_only=True):
    """What a server reports about itself; a field that it does not report is empty.

    Attributes:
        kind: `redis` or `valkey`.
        version: Its version.
        role: `master` or `slave`, as the server reports it.
        eviction: Its `maxmemory-policy`.
        append_only: Whether it keeps an append-only file.
    """

    kind: str
    version: str
    role: str
    eviction: str
    append_only: bool | None

    @classmethod
    def read(cls, reply: bytes | Mapping[str, Any]) -> ServerInfo:
        """Return what the reply to `INFO` states: of one server, or of the first of a Cluster's."""
        info: Mapping[str, Any] = fields_of(reply) if isinstance(reply, bytes) else reply
        first = next(iter(info.values()), None)
        if isinstance(first, dict) and "redis_version" in first:
            info = first
        valkey = info.get("valkey_version")
        append_only = info.get("aof_enabled")
        return cls(
            kind="valkey" if valkey else "redis",
            version=str(valkey or info.get("redis_version", "")),
            role=str(info.get("role", "")),
            eviction=str(info.get("maxmemory_policy", "")),
            append_only=None if append_only is None else bool(int(append_only)),
        )

    def check(self, shown_url: str) -> None:
        """Refuse a server that would break the guarantees.

        Raises:
            ConfigurationError: When it evicts keys, is a replica, or is too old.
        """
        if self.eviction and self.eviction != "noeviction":
            raise ConfigurationError(
                f"Redis at {shown_url} evicts keys (maxmemory-policy {self.eviction}), and with them live leases; "
                "set it right: redis-cli config set maxmemory-policy noeviction"
            )
        if self.role in {"slave", "replica"}:
            raise ConfigurationError(
                f"Redis at {shown_url} is a replica; give the URL of its primary, or a redis+sentinel:// URL"
            )
        if self.kind == "redis" and self.version and _numbers(self.version) < OLDEST_REDIS:
            raise ConfigurationError(f"Redis at {shown_url} is version {self.version}; use 6.2 or newer, or Valkey")

    def warnings(self) -> list[str]:
        """Return warnings: what works, but is a risk."""
        if self.append_only is False:
            return [
                (
                    "the server keeps no append-only file: after a restart leases come back only as their holders "
                    "re-assert them; switch it on: redis-cli config set appendonly yes"
                )
            ]
        return []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


class OnCall(Protocol):
    """Takes the time of each script that an async store ran, for counting."""

    def __call__(self, script: str, seconds: float, *, answered: bool) -> None:
        """Take one script's time, the way to Redis and back included."""
        ...


class BaseStore:
    """A connection to Redis, opened at the first call.

    Args:
        address: Returns the address of Redis; starts the embedded server where that is the one.
        shown_url: The URL without secrets.
        timeout_s: For how many seconds Redis may be silent.
    """

    def __init__(self, address: Callable[[], StoreAddress], *, shown_url: str, timeout_s: float = 5.0) -> None:
        self._address = address
        self._shown_url = shown_url
        self._timeout_s = timeout_s
        self._client: Any = None
        self._finds_again = False

    def __repr__(self) -> str:
        condition = "connected" if self._client else "not connected yet"
        return f"<{type(self).__name__} {self._shown_url}, {condition}>"

    @classmethod
    def open(cls, url: str, *, timeout_s: float = 5.0, password: str | None = None) -> Self:
        """Return a store for a Redis URL; nothing is sent yet.

        Args:
            url: See `allocator.model.redis_urls`.
            timeout_s: For how many seconds Redis may be silent.
            password: The password when the URL has none.

        Raises:
            ConfigurationError: When the URL cannot be read.
        """
        address = parse_store_url(url, password=password)
        return cls(lambda: address, shown_url=redacted(url), timeout_s=timeout_s)

    @classmethod
    def embedded(cls, ensure: Callable[[], str], *, timeout_s: float = 5.0) -> Self:
        """Return a store for the embedded server, which is started again whenever it is gone.

        Args:
            ensure: Starts the server when it does not run; returns its URL.
            timeout_s: For how many seconds it may be silent.
        """
        shown = "the embedded server"
        store = cls(lambda: parse_store_url(ensure(), password=""), shown_url=shown, timeout_s=timeout_s)
        store._finds_again = True
        return store

    @property
    def address(self) -> StoreAddress:
        """Where Redis is; the embedded server is started when it does not run."""
        return self._address()

    def _accept_client(self, client: Any, info: Any) -> Any:  # noqa: ANN401  # one of several clients; a reply
        """Check the server, and return the client to use: this one, unless another call connected first.

        Raises:
            ConfigurationError: When the server evicts keys, is a replica, or is too old.
        """
        ServerInfo.read(info).check(self._shown_url)
        if self._client is None:
            self._client = client
        return self._client

    def _seconds_to_try(self, error: Exception, spent_s: float) -> float:
        """Return the seconds for which a call is repeated after an error; 0: not at all."""
        left_s = self._timeout_s - spent_s
        if not is_transient(error) or left_s <= 0:
            return 0.0
        if self._finds_again:
            self._client = None
        return left_s

    def _translated(self, error: Exception, key: str | None) -> AllocatorError:
        """Return the AllocatorError for an error of the connection."""
        return translate(error, shown_url=self._shown_url, timeout_s=self._timeout_s, key=key)

    def _blocking_s(self, seconds: float) -> float:
        """Return for how long the server may keep a call waiting: less than the time that it may be silent."""
        return max(0.001, min(seconds, self._timeout_s / 2))

    def _await_turn_commands(self, step: AwaitTurn) -> tuple[Command, Command]:
        """Return two commands: one marks the waiter as alive, one blocks until it is first in the queue."""
        return (
            ("SET", step.waiter, step.content, "PX", step.alive_ms),
            ("BLPOP", step.turn, self._blocking_s(step.seconds)),
        )

    def _wait_command(self, step: ScriptCall) -> Command:
        """Return the command that waits until replicas have what a script wrote."""
        return "WAIT", step.replicas, int(self._timeout_s * 500)


def open_store(
    kind: type[S],
    settings: Settings,
    *,
    reads_only: bool = False,
    on_start: Callable[[EmbeddedStatus], None] | None = None,
) -> S:
    """Return the connection that the settings make; nothing is sent yet.

    Args:
        kind: The store to make: blocking or for asyncio.
        settings: The settings.
        reads_only: Whether its user only reads, for which no embedded server is started.
        on_start: Called when an embedded server was started; None for a library, which logs that it uses one.
    """
    if settings.redis_url:
        return kind.open(settings.redis_url, timeout_s=settings.timeout_s, password=settings.redis_password)

    def embedded() -> str:
        if settings.refused:  # it may name the registry that everybody uses
            raise ConfigurationError(f"no Redis is configured, and {'; '.join(settings.refused)}")
        if reads_only:
            return running_embedded(settings)
        return started_embedded(settings, on_start)

    return kind.embedded(embedded, timeout_s=settings.timeout_s)


def started_embedded(settings: Settings, on_start: Callable[[EmbeddedStatus], None] | None) -> str:
    """Return the URL of this user's embedded server, which is started when it does not run."""
    from allocator.store.embedded import EmbeddedServer

    server = EmbeddedServer(settings.state_dir)
    url = server.ensure(on_start)
    if on_start is None:
        warn_once(
            f"no Redis is configured: ports are leased from the embedded server in {server.data_dir}, which other "
            "users and hosts do not see; set ALLOCATOR_REDIS_URL, or redis_url in allocator.toml, or give a URL"
        )
    return url


def running_embedded(settings: Settings) -> str:
    """Return the URL of this user's embedded server.

    Raises:
        StoreUnavailableError: When none runs.
    """
    from allocator.store.embedded import EmbeddedServer

    url = EmbeddedServer(settings.state_dir).running()
    if url is None:
        raise StoreUnavailableError(
            "no Redis is configured and no embedded server runs, so there is nothing to read; claim a port first, "
            "or name a Redis with --redis-url or ALLOCATOR_REDIS_URL"
        )
    return url


def is_unknown_script(reply: Any) -> bool:  # noqa: ANN401  # a reply
    """Return whether a server answered that it does not know a script by its SHA-1."""
    return type(reply) is ReplyError and reply.code == "NOSCRIPT"


def info_refused(error: ReplyError) -> dict[str, Any]:
    """Return the empty information of a server that refuses `INFO`.

    Raises:
        ReplyError: When it may answer a little later, or nobody may ask it anything.
    """
    if is_transient(error) or error.code in {"NOAUTH", "WRONGPASS"}:
        raise error
    return {}


def read_command(stream: str, after_id: str, count: int, block_s: float | None) -> Command:
    """Return the command that reads events after one, and waits for the first of them where `block_s` is given."""
    block: Command = () if block_s is None else ("BLOCK", max(1, int(block_s * 1_000)))
    return ("XREAD", "COUNT", count, *block, "STREAMS", stream, after_id)


def read_events(reply: Any) -> list[Event]:  # noqa: ANN401  # a reply
    """Return the events of one stream that were read, oldest first."""
    return decode_events(reply[0][1]) if reply else []


def newest_command(stream: str, count: int, before_id: str = "+") -> Command:
    """Return the command that reads the last events, newest first."""
    return "XREVRANGE", stream, before_id, "-", "COUNT", count


def decode_events(rows: Iterable[tuple[bytes, list[bytes]]]) -> list[Event]:
    """Return stream entries as text; one that was deleted meanwhile has no fields."""
    return [
        (identifier.decode(), dict(zip(map(text, fields[::2]), map(text, fields[1::2]), strict=True)))
        for identifier, fields in rows
        if fields
    ]


def decode_time(reply: Any) -> float:  # noqa: ANN401  # a reply
    """Return the reply to `TIME` as Unix seconds."""
    seconds, microseconds = reply
    return float(seconds) + float(microseconds) / 1_000_000


def decode_pool(key: bytes) -> str | None:
    """Return the pool whose key this is, or None; what no pool can be called is another program's key."""
    pool = pool_of_key(key.decode("utf-8", "replace"))
    return pool if pool is not None and is_name(pool) else None
