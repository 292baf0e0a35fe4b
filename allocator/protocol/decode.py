"""Replies of Redis as values: text, numbers, leases. A reply of the wrong shape is a clear error, not a traceback."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.leases import HOLDER_WORDS, NUMBER_WORDS, TEXT_WORDS, Lease, error_line
from allocator.model.names import WorkerId, check_address, check_name, check_port, shown
from allocator.model.states import LeaseState
from allocator.protocol.keys import pool_key

if TYPE_CHECKING:
    from collections.abc import Mapping

WRONG_SHAPES = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading a reply raises that no script of ours, and no Redis, would give."""

MAX_TIME_MS = 32_503_680_000_000
"""The year 3000: a time beyond it was not written by us, and calendars end soon after."""

MAX_NUMBER = 2**63 - 1
"""The largest fence and pid that Redis, SQL and the kernel can all hold."""

_HOLDER_WORDS = frozenset(HOLDER_WORDS)
_compact = json.JSONEncoder(separators=(",", ":")).encode


def text(value: object) -> str:
    """Return one word of a reply as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def number(value: object) -> float:
    """Return one word of a reply as a number (a score may be `inf`).

    Raises:
        ConfigurationError: When it is none.
    """
    if isinstance(value, int):
        return float(value)
    try:
        return float(text(value))
    except ValueError:
        raise ConfigurationError(
            f"Redis answered {shown(text(value))} where a number belongs; is another program writing under alloc:?"
        ) from None


def time_ms(value: object) -> float:
    """Return one word of a reply as a time of the server, in milliseconds.

    Raises:
        ConfigurationError: When it is none, or lies beyond the year 3000.
    """
    found = number(value)
    if 0 <= found <= MAX_TIME_MS:
        return found
    raise ConfigurationError(f"Redis answered {shown(text(value))} where a time belongs; is its clock right?")


def address(value: object) -> str:
    """Return the address that a host advertises; an empty text for what is no address, whoever wrote it there."""
    found = text(value)
    try:
        return check_address(found) if found else ""
    except InvalidInputError:
        return ""


def event_time(identifier: str) -> float:
    """Return when an event happened, by its id, in Unix seconds; another program's id may hold any number."""
    return min(int(identifier.partition("-")[0]), MAX_TIME_MS) / 1_000


def unreadable(what: str) -> ConfigurationError:
    """Return the error for a reply of the wrong shape.

    Args:
        what: What was asked for.
    """
    return ConfigurationError(
        f"Redis answered {what} in a form that portlease does not know; is it a Redis or Valkey, "
        "and is another program writing under alloc:?"
    )


def words(reply: object) -> list[Any]:
    """Return a reply that has to be a list.

    Raises:
        ConfigurationError: When it is something else.
    """
    if isinstance(reply, list):
        return reply
    raise ConfigurationError(f"Redis answered {shown(text(reply))} to a script; is this server a Redis or Valkey?")


def lease(
    pool: str,
    value: object,
    *,
    remaining_ms: float,
    now_ms: float,
    token: str | None = None,
    deadline: float | None = None,
    key: str | None = None,
    asked: WorkerId | None = None,
) -> Lease:
    """Return the lease that a script wrote as JSON.

    Args:
        pool: The pool that it is of.
        value: The text of the lease's key.
        remaining_ms: How long it still lives.
        now_ms: The server's time.
        token: The proof of holding it, for its holder's copy.
        deadline: See `Lease`, for its holder's copy.
        key: The key that it was read from, where one is known, for the error.
        asked: The worker that asked for it, where one is known: its name is not read again.

    Raises:
        ConfigurationError: When the text is no lease.
    """
    raw = text(value)
    try:
        fields = json.loads(raw)
        return Lease(
            pool=pool,
            host=check_name("host", fields["host"]),
            port=check_port(fields["port"]),
            worker=asked if asked and str(asked) == fields["worker"] else WorkerId.parse(fields["worker"]),
            state=LeaseState(fields["state"]),
            fence=bounded(fields["fence"]),
            ttl_ms=bounded(fields["ttl_ms"], MAX_TIME_MS),
            granted_at=bounded(fields["granted_at"], MAX_TIME_MS) / 1_000,
            expires_at=bounded(now_ms + remaining_ms, MAX_TIME_MS) / 1_000,
            **holder_words(fields),
            token=token,
            deadline=deadline,
        )
    except (*WRONG_SHAPES, InvalidInputError):
        raise ConfigurationError(
            f"{f'key {key}' if key else f'a lease key of {pool_key(pool)}'} holds {shown(raw)}, which is no lease; "
            "another program wrote it: move or delete that key"
        ) from None


def bounded(value: float | str, most: int = MAX_NUMBER) -> int:
    """Return a number of a lease as a whole one.

    Raises:
        ValueError: When it is none, or not from 0 to `most`; OverflowError and TypeError alike.
    """
    number = int(value)
    if 0 <= number <= most:
        return number
    raise ValueError(value)


def holder_words(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a holder says of itself in a lease as JSON, as arguments of `Lease`; what it leaves out is left out.

    Raises:
        ValueError: When a member has another form; TypeError and AttributeError alike.
    """
    given = {name: fields[name] for name in _HOLDER_WORDS & fields.keys() if fields[name] is not None}
    for name in NUMBER_WORDS & given.keys():
        given[name] = bounded(given[name])
    for name in TEXT_WORDS & given.keys():
        given[name] = error_line(str(given[name]))
    if "labels" in given:
        given["labels"] = {str(key): str(word) for key, word in given["labels"].items()}
    return given


def extra_members(words: Mapping[str, Any]) -> str:
    """Return the JSON members that a holder adds to its lease, each with a comma before it; empty ones are left out."""
    given = {name: value for name, value in words.items() if value}
    return "," + _compact(given)[1:-1] if given else ""
