"""The keys that programs read directly; all other keys are derived by the scripts. Streams, waiters, leaders."""

from __future__ import annotations

from allocator.protocol.wire import MAX_TIME_MS, PREFIX, pool_key


def pool_of_key(key: str) -> str | None:
    """Return the pool whose key this is, or None when it is the key of something else."""
    if key.startswith(PREFIX + "{") and key.endswith("}"):
        return key[len(PREFIX) + 1 : -1]
    return None


def lease_key(pool: str, namespace: str, port: int | str) -> str:
    """Return the key of the lease on a port of a namespace."""
    return f"{pool_key(pool)}:lease:{namespace}:{port}"


def history_key(pool: str) -> str:
    """Return the key of the stream that has the versions of a pool's rules."""
    return f"{pool_key(pool)}:history"


def leader_key(pool: str) -> str:
    """Return the key that shows who leads the reconcilers of a pool."""
    return f"{pool_key(pool)}:leader"


def queue_key(pool: str, namespace: str) -> str:
    """Return the key of the queue of a namespace: its waiters, first come first served."""
    return f"{pool_key(pool)}:waiters:{namespace}"


def waiter_keys(pool: str, ticket: str) -> tuple[str, str]:
    """Return the key that shows that a waiter is there, and the one through which it is woken."""
    base = pool_key(pool)
    return f"{base}:waiter:{ticket}", f"{base}:turn:{ticket}"


def events_key(pool: str) -> str:
    """Return the key of a pool's event stream."""
    return f"{pool_key(pool)}:events"


def event_time(identifier: str) -> float:
    """Return when an event happened, by its id, in Unix seconds; another program's id may hold any number."""
    return min(int(identifier.partition("-")[0]), MAX_TIME_MS) / 1_000
