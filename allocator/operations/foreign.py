"""What stands in a pool's keys and is not ours: passed over by all who read, named here for whoever looks after Redis.

Another program, or a user whose rights are too wide, wrote it. Nothing is changed: what it is for, only a person knows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from allocator.model.errors import InvalidInputError
from allocator.model.names import check_port, is_name, shown
from allocator.operations.context import read_pool
from allocator.operations.listing import port_namespaces, ports
from allocator.protocol.signatures.inspect import InspectHostCall, InspectMembersCall
from allocator.protocol.wire import PREFIX, ask, pool_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from allocator.operations.steps import Operation

MAX_SETS = 2_000
"""Sorted sets that are looked through at most; the rest of a larger pool is left to the next time."""
MEMBERS_PAGE, MAX_MEMBERS = 512, 1_000_000
IMPOSSIBLE = 9e15
"""No turn of a service has such a score before the year 2255; `resolve.lua` has the same number."""
_MEMBER = re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}", re.ASCII)
_KEY = re.compile(rf"{re.escape(PREFIX)}\{{([^{{}}]*)\}}(?::([a-z]+)(?::.*)?)?", re.DOTALL)
_KINDS = frozenset(
    {
        "unreported", "history", "waiters", "waiter", "held", "turn", "limited", "ports", "lease", "tokens", "worker",
        "service", "host", "hosts", "leader", "events", "numbers", "removed",
    }
)  # fmt: skip
"""What a key of a pool may be for; the table in `lua/README.md` has them all."""


def strange_keys(names: Iterable[str]) -> list[str]:
    """Return the keys under our prefix that no script of ours writes.

    Args:
        names: The names of all keys under our prefix.
    """
    return [name for name in names if not (found := _KEY.fullmatch(name)) or not _is_ours(found[1], found[2])]


def _is_ours(pool: str, kind: str | None) -> bool:
    return is_name(pool) and (kind is None or kind in _KINDS)


def strange_entries(pool: str, names: Iterable[str]) -> Operation[list[str]]:
    """Return, a sentence each, what stands in the keys of a pool where a member, a lease or an address belongs.

    Args:
        pool: The pool.
        names: The names of all keys under our prefix.
    """
    base = pool_key(pool)
    prefix = f"{base}:service:"
    found: list[str] = []
    for key in [name for name in names if name.startswith(prefix)][:MAX_SETS]:
        for member, score in (yield from _members(pool, key.removeprefix(base))):
            if not _MEMBER.fullmatch(member):
                found.append(f"key {key} has the member {shown(member)}, which is not host:port")
            elif float(score) >= IMPOSSIBLE:
                found.append(f"key {key} gives {member} the score {score}, which is not a turn")
    for host, _ in (yield from _members(pool, ":hosts")):
        if host != "*" and not is_name(host):
            found.append(f"key {base}:hosts has the member {shown(host)}, which is not a host")
    rules = yield from read_pool(pool)
    for namespace in (yield from port_namespaces(rules)) if rules else []:
        found += yield from _in_namespace(pool, namespace)
    return found


def _in_namespace(pool: str, namespace: str) -> Operation[list[str]]:
    known = yield from ask(InspectHostCall(pool=pool, namespace=namespace))
    found = []
    if known.address == "" and len(parts := known.identity.split(" ")) > 3:
        found.append(f"key {pool_key(pool)}:host:{namespace} advertises {shown(parts[3])}, which is not an address")
    key = f"{pool_key(pool)}:ports:{namespace}"
    for member, _ in (yield from _members(pool, f":ports:{namespace}")):
        try:
            check_port(member)
        except InvalidInputError:
            found.append(f"key {key} has the member {shown(member)}, which is not a port")
    strange: list[str] = []
    yield from ports(pool, namespace, strange=strange)
    return found + [error.partition(";")[0] for error in strange if "not a lease" in error]


def _members(pool: str, suffix: str) -> Operation[list[tuple[str, str]]]:
    found: list[tuple[str, str]] = []
    while len(found) < MAX_MEMBERS:
        page = yield from ask(InspectMembersCall(pool=pool, suffix=suffix, offset=len(found), count=MEMBERS_PAGE))
        found += page
        if len(page) < MEMBERS_PAGE:
            break
    return found
