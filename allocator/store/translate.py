"""What an error of the Redis client means: one of ours, in one line, without secrets; and whether it may pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.durations import format_duration
from allocator.model.errors import AllocatorError, ConfigurationError, StoreUnavailableError
from allocator.protocol.decode import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORBIDDEN = ("NOPERM", "ACL failure", "The user executing the script can't")
"""How a server begins to say that an ACL rule forbids it: outside of scripts, and inside those of Redis 7.0."""

_SCRIPT_SENTENCE = "ALLOC "

MAX_WORDS = 800
"""As much of a server's error is shown, in characters: a sentence of ours with the longest key, and room to spare."""

_TRANSIENT_CODES = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY ", "NOREPLICAS", "UNBLOCKED",
                    "MOVED", "ASK", "CROSSSLOT", "TTL exhausted")  # fmt: skip


_NODES_GONE = ("Redis Cluster cannot be connected", "All slots are not covered")


def client_errors() -> tuple[type[Exception], ...]:
    """Return the errors that the Redis client may raise for something outside this program."""
    from redis.exceptions import RedisClusterException, RedisError

    return (RedisError, RedisClusterException, OSError)


def is_transient(error: BaseException) -> bool:
    """Return whether the same command may succeed a little later: connections, failovers, moving slots."""
    from redis import exceptions

    if isinstance(error, exceptions.AuthenticationError | exceptions.InvalidResponse):
        return False
    text = str(error)
    if isinstance(error, exceptions.RedisClusterException):  # no RedisError; raised while nodes are gone
        gone = isinstance(error, exceptions.SlotNotCoveredError) or text.startswith(_NODES_GONE)
        return gone and not any(sign in text for sign in ("NOAUTH", "WRONGPASS"))
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError):
        return not _is_foreign(text) and "SSL" not in text and "certificate" not in text
    return isinstance(error, exceptions.ResponseError | exceptions.ClusterError) and (
        text.startswith(_TRANSIENT_CODES) or isinstance(error, _transient_types())
    )


def _transient_types() -> tuple[type[Exception], ...]:
    from redis import exceptions

    return (
        exceptions.ReadOnlyError,
        exceptions.BusyLoadingError,
        exceptions.ClusterDownError,
        exceptions.TryAgainError,
        exceptions.MasterDownError,
        exceptions.MovedError,
        exceptions.AskError,
    )


def _is_foreign(text: str) -> bool:
    return any(sign in text for sign in ("Protocol Error", "Protocol error", "Invalid response", "HTTP/"))


def translate(error: Exception, *, shown_url: str, timeout_s: float, key: str | None = None) -> AllocatorError:  # noqa: PLR0911  # a case a line
    """Return the error of ours that says what `error` means.

    Args:
        error: What the Redis client raised.
        shown_url: The URL without secrets.
        timeout_s: How long the call was given.
        key: The one key that was read, when it was no script that read it.
    """
    from redis import exceptions

    text = next(_words(error), type(error).__name__)
    where = f"Redis at {shown_url}"
    if text.startswith(_SCRIPT_SENTENCE):
        return ConfigurationError(text.removeprefix(_SCRIPT_SENTENCE))
    if isinstance(error, exceptions.AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
        return ConfigurationError(
            f"{where} refused the user or password; put them into the URL, or set ALLOCATOR_REDIS_PASSWORD"
        )
    if isinstance(error, exceptions.NoPermissionError) or text.startswith(_FORBIDDEN):
        return ConfigurationError(f"{where} does not allow this user what portlease needs ({text}); mend its ACL rule")
    if isinstance(error, exceptions.InvalidResponse) or _is_foreign(text):
        return ConfigurationError(f"the server at {shown_url} is not a Redis or Valkey; correct --redis-url")
    if "SSL" in text or "certificate" in text:
        return ConfigurationError(f"{where}: TLS failed ({text}); check rediss:// and ssl_ca_certs")
    if isinstance(error, exceptions.OutOfMemoryError) or text.startswith("OOM"):
        return StoreUnavailableError(f"{where} has no memory left (maxmemory is reached); raise maxmemory")
    if text.startswith("WRONGTYPE"):
        return ConfigurationError(
            f"{where} has a value of the wrong type under {key or 'a key of portlease'}; "
            "another program wrote it: move or delete that key"
        )
    if text.startswith("MISCONF"):
        return StoreUnavailableError(f"{where} cannot write its data to disk and refuses changes; make room there")
    if is_transient(error) or isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError):
        return StoreUnavailableError(
            f"{where} did not answer within {format_duration(timeout_s * 1_000)} ({text}); "
            "start it or correct --redis-url"
        )
    return ConfigurationError(f"{where} refused a command of portlease ({text}); is it Redis 6.2+ or Valkey 7.2+?")


def misread(key: str | None) -> AllocatorError:
    """Return the error for an answer of the wrong shape.

    Args:
        key: The one key that was read, when it was no script that read it.
    """
    return unreadable(key or "a command")


def _words(error: BaseException) -> Iterator[str]:
    printable = "".join(character if character.isprintable() else " " for character in str(error)[:MAX_WORDS])
    if text := " ".join(printable.split()):
        yield text.rstrip(".")
