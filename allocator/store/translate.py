"""Errors of a connection as AllocatorErrors: one line without secrets; and whether a second try may succeed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.durations import format_duration
from allocator.model.errors import AllocatorError, ConfigurationError, StoreUnavailableError
from allocator.protocol.wire import unreadable
from allocator.store.direct import ForeignReplyError, ReplyError

if TYPE_CHECKING:
    from collections.abc import Iterator

FAULTS = (ReplyError, ForeignReplyError, OSError)
"""What a connection may raise for something outside this program."""

_FORBIDDEN = ("NOPERM", "ACL failure", "The user executing the script can't")
"""How an error begins when an ACL rule forbids a command: outside of scripts, and inside those of Redis 7.0."""

_SCRIPT_SENTENCE = "ALLOC "

MAX_TEXT = 800
"""Characters of a server's error that are shown: one of our sentences with the longest key fits."""

_TRANSIENT_CODES = frozenset(
    {"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "UNBLOCKED", "MOVED", "ASK",
     "CROSSSLOT"}
)  # fmt: skip
"""Errors after which the same command may succeed a little later: failovers, moving slots, a long script."""

_FULL = "max number of clients"
"""How an error begins when the server accepts no more connections."""

_REFUSED_LOGIN = ("AUTH <password> called without", "invalid password", "Client sent AUTH")
"""How an error begins when the server refuses a password without an error code."""

_TLS_ENDED = frozenset({"SSLEOFError", "SSLZeroReturnError"})
"""The errors of a TLS connection that the other end only closed; `ssl` is not imported to name them."""


def is_transient(error: BaseException) -> bool:
    """Return whether the same command may succeed a little later: connections, failovers, moving slots."""
    if isinstance(error, ReplyError):
        return error.code in _TRANSIENT_CODES or str(error).startswith(_FULL)
    return isinstance(error, OSError) and (type(error).__name__ in _TLS_ENDED or not _is_about_tls(error))


def _is_about_tls(error: OSError) -> bool:
    return type(error).__module__ == "ssl" or any(sign in str(error) for sign in ("SSL", "certificate"))


def translate(error: Exception, *, shown_url: str, timeout_s: float, key: str | None = None) -> AllocatorError:  # noqa: PLR0911  # a case a line
    """Return the AllocatorError for an error of a connection.

    Args:
        error: What the connection raised.
        shown_url: The URL without secrets.
        timeout_s: How long the call was given.
        key: The one key that was read, when it was no script that read it.
    """
    text = next(_text_of(error), type(error).__name__)
    where = f"Redis at {shown_url}"
    if text.startswith(_SCRIPT_SENTENCE):
        return ConfigurationError(text.removeprefix(_SCRIPT_SENTENCE))
    code = error.code if isinstance(error, ReplyError) else ""
    if code in {"NOAUTH", "WRONGPASS"} or text.startswith(_REFUSED_LOGIN):
        return ConfigurationError(
            f"{where} refused the user or password; put them into the URL, or set ALLOCATOR_REDIS_PASSWORD"
        )
    if text.startswith(_FORBIDDEN):
        return ConfigurationError(
            f"{where} does not allow this user what portlease needs ({text}); "
            "give it the rules of 'holder' in deploy/redis/users.acl, or to look only those of 'reader'"
        )
    if isinstance(error, ForeignReplyError):
        return ConfigurationError(f"the server at {shown_url} is not a Redis or Valkey; correct --redis-url")
    if isinstance(error, OSError) and _is_about_tls(error):
        return ConfigurationError(f"{where}: TLS failed ({text}); check rediss:// and ssl_ca_certs")
    if code == "OOM":
        return StoreUnavailableError(f"{where} has no memory left (maxmemory is reached); raise maxmemory")
    if code == "WRONGTYPE":
        return ConfigurationError(
            f"{where} has a value of the wrong type under {key or 'a key of portlease'}; "
            "another program wrote it: move or delete that key"
        )
    if code == "MISCONF":
        return StoreUnavailableError(f"{where} cannot write its data to disk and refuses changes; make room there")
    if is_transient(error) or isinstance(error, OSError):
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


def _text_of(error: BaseException) -> Iterator[str]:
    """Return the text of an error as one printable line, without the system's error number; empty when it has none."""
    description = (isinstance(error, OSError) and error.strerror) or str(error)
    printable = "".join(character if character.isprintable() else " " for character in description[:MAX_TEXT])
    if text := " ".join(printable.split()):
        yield text.rstrip(".")
