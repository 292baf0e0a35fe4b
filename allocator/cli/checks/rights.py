"""What a user of Redis may do: tried with commands that change nothing, for each role of `deploy/redis/users.acl`.

The rule of this file: whatever is there, no command here changes it. Of a holder's commands SADD and LPUSH are not
tried, for each would make its key; a script that needs them is refused with their names.
"""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING

from allocator.cli.checks.findings import Finding
from allocator.cli.context import blocking_allocator, report
from allocator.model.errors import AllocatorError
from allocator.model.log import WARNING
from allocator.protocol.wire import pool_key

if TYPE_CHECKING:
    from allocator.model.settings import Settings
    from allocator.store.blocking import Store

NOBODY = "doctor"
"""Stands in keys where a host, a port or a worker has its name; of portlease's own keys none ends in it."""


def missing_rights(store: Store, pool: str) -> Finding | None:
    """Return what this user may not do although a reader or a holder has to, or None."""
    base = pool_key(pool)
    if denied := store.denied(_a_readers(base)):
        what = f"this Redis user may not look: {', '.join(denied)} on keys of {base} are refused"
        return Finding("rights", what, "give it the rules of 'reader' or 'holder' in deploy/redis/users.acl")
    if denied := store.denied(_a_holders(base)):
        what = f"this Redis user can look but not hold leases: {', '.join(denied)} on keys of {base} are refused"
        return Finding("rights", what, "give it the rules of 'holder' in deploy/redis/users.acl")
    return None


def report_missing_rights(settings: Settings) -> None:
    """Report in one line what this user may not do, while the command goes on; nothing when Redis does not answer."""
    threading.Thread(target=_report, args=(settings,), name="allocator-rights", daemon=True).start()


def _report(settings: Settings) -> None:
    try:
        with closing(blocking_allocator(settings, reads_only=True)) as allocator:
            found = missing_rights(allocator.store, settings.pool)
    except AllocatorError:  # whatever uses Redis reports it
        return
    if found is not None:
        report(f"{found.what}; {found.fix}", level=WARNING)


def _a_readers(base: str) -> list[tuple[str, ...]]:
    events, hosts, host = f"{base}:events:{NOBODY}", f"{base}:hosts", f"{base}:host:{NOBODY}"
    lease, worker, ports = f"{base}:lease:{NOBODY}:0", f"{base}:worker:{NOBODY}", f"{base}:ports:{NOBODY}"
    return [
        ("EVAL", "return 1", "1", base),
        ("EVALSHA", "0" * 40, "1", base),
        ("GET", lease),
        ("MGET", lease),
        ("PTTL", worker),
        ("HGET", host, "0"),
        ("HMGET", base, "rules"),
        ("HGETALL", host),
        ("HEXISTS", host, "0"),
        ("HLEN", host),
        ("ZSCORE", hosts, NOBODY),
        ("ZMSCORE", hosts, NOBODY),
        ("ZRANK", ports, "0"),
        ("ZCARD", ports),
        ("ZCOUNT", ports, "0", "0"),
        ("ZRANGE", ports, "0", "0"),
        ("ZRANGEBYSCORE", ports, "0", "0"),
        ("XLEN", events),
        ("XREAD", "COUNT", "1", "STREAMS", events, "0-0"),
        ("XRANGE", events, "-", "+", "COUNT", "1"),
        ("XREVRANGE", events, "+", "-", "COUNT", "1"),
    ]


def _a_holders(base: str) -> list[tuple[str, ...]]:
    events, host, limited = f"{base}:events:{NOBODY}", f"{base}:host:{NOBODY}", f"{base}:limited:{NOBODY}"
    lease, worker, waiters = f"{base}:lease:{NOBODY}:0", f"{base}:worker:{NOBODY}", f"{base}:waiters:{NOBODY}"
    tokens, ports = f"{base}:tokens:{NOBODY}", f"{base}:ports:{NOBODY}"
    return [
        ("HGET", tokens, "0"),
        ("HSET", host, "a value", "is", "missing"),
        ("HDEL", host, "-"),
        ("HINCRBY", host, "-", "no number"),
        ("SET", lease, "", "XX"),
        ("DEL", lease),
        ("UNLINK", lease),
        ("PEXPIRE", worker, "1"),
        ("PERSIST", tokens),
        ("ZADD", ports, "XX", "0", "0"),
        ("ZREM", ports, "0"),
        ("SREM", limited, "-"),
        ("SCARD", limited),
        ("SMEMBERS", limited),
        ("LLEN", waiters),
        ("BLPOP", waiters, "0.001"),
        ("XADD", events, "NOMKSTREAM", "*", "-", "-"),
        ("XDEL", events, "0-1"),
        ("XTRIM", events, "MAXLEN", "0"),
    ]
