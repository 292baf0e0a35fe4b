"""The two keys that every script is given; the scripts derive all others from them."""

from __future__ import annotations

PREFIX = "alloc:"
FLEET_SPACE = "*"
"""The space of a pool in which a port is unique over all hosts; no host can have this name."""


def pool_key(pool: str) -> str:
    """Return the key of a pool; the braces make all its keys one Cluster slot."""
    return f"{PREFIX}{{{pool}}}"


def pool_of_key(key: str) -> str | None:
    """Return the pool whose key this is, or None when it is the key of something else."""
    if key.startswith(PREFIX + "{") and key.endswith("}"):
        return key[len(PREFIX) + 1 : -1]
    return None


def script_keys(pool: str, space: str = FLEET_SPACE) -> tuple[str, str]:
    """Return KEYS for a script that works on one space of a pool."""
    base = pool_key(pool)
    return base, f"{base}:ports:{space}"


def whole_pool_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return KEYS for a script in a Cluster: with one more, which never exists.

    While a slot moves, the node that receives it runs a script of several keys only when it has them all; but the keys
    that a script derives may still be on their way, and would seem not to be there. With a key that nobody has it
    answers TRYAGAIN until the slot has moved as a whole.

    Source: `getNodeByQuery` in `cluster.c` of Redis and Valkey.
    """
    return (*keys, f"{keys[0]}:absent")


def lease_key(pool: str, space: str, port: int | str) -> str:
    """Return the key of the lease on a port of a space."""
    return f"{pool_key(pool)}:lease:{space}:{port}"


def history_key(pool: str) -> str:
    """Return the key of the stream that has the versions of a pool's rules."""
    return f"{pool_key(pool)}:history"


def leader_key(pool: str) -> str:
    """Return the key that says who leads the reconcilers of a pool."""
    return f"{pool_key(pool)}:leader"


def queue_key(pool: str, space: str) -> str:
    """Return the key of those who wait in line in a space of a pool, first come first."""
    return f"{pool_key(pool)}:waiters:{space}"


def waiter_keys(pool: str, ticket: str) -> tuple[str, str]:
    """Return the key that says that a waiter is there, and the one through which it is told to look."""
    base = pool_key(pool)
    return f"{base}:waiter:{ticket}", f"{base}:turn:{ticket}"


def events_key(pool: str) -> str:
    """Return the key of a pool's event stream."""
    return f"{pool_key(pool)}:events"
