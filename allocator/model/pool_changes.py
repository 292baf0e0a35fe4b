"""What a change of a pool's rules means: which rules differ, and what that does to the leases that are there.

This is a description only: a change of the rules never touches a live lease.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from allocator.model.leases import Lease
    from allocator.model.pools import PoolSpec

NAMED = 5
"""This number of leases is named where there may be thousands."""


def differences(before: PoolSpec | None, after: PoolSpec) -> Iterator[tuple[str, str, str]]:
    """Yield each rule that differs: its name, what it was (`-` for nothing), what it becomes."""
    for rule in fields(after):
        if rule.name == "name":
            continue
        old, new = (None if before is None else getattr(before, rule.name)), getattr(after, rule.name)
        if old == new:
            continue
        if isinstance(new, dict) or isinstance(old, dict):
            old, new = old or {}, new or {}
            for key in sorted({*old, *new}):
                if old.get(key) != new.get(key):
                    yield f"{rule.name}.{key}", _shown(old.get(key)), _shown(new.get(key))
        else:
            yield rule.name, _shown(old), _shown(new)


def effects(before: PoolSpec | None, after: PoolSpec, leases: Sequence[Lease]) -> Iterator[str]:
    """Yield a line for each thing that a change of rules means for the live leases of a pool."""
    outside = [lease for lease in leases if lease.port not in after]
    if outside:
        yield f"{len(outside)} leases keep ports outside the range until they end: {_named(outside)}"
    if before is not None:
        owners = {port: plugin for plugin, ports in after.conventional.items() for port in ports}
        owners |= {port: plugin for plugin, (first, last) in after.bands.items() for port in range(first, last + 1)}
        foreign = [lease for lease in leases if owners.get(lease.port, lease.plugin) != lease.plugin]
        if foreign:
            yield f"{len(foreign)} leases keep ports that belong to other plugins until they end: {_named(foreign)}"
    yield from limits_below_use(after, leases)


def limits_below_use(pool: PoolSpec, leases: Sequence[Lease]) -> Iterator[str]:
    """Yield a line for each limit that more leases than it allows are live under."""
    checks: tuple[tuple[str, Counter[str], dict[str, int], int | None], ...] = (
        ("organisation", Counter(lease.org for lease in leases), dict(pool.org_limits), pool.max_per_org),
        ("plugin", Counter(lease.plugin for lease in leases), dict(pool.plugin_limits), pool.max_per_plugin),
        ("service", Counter(f"{lease.org}/{lease.plugin}" for lease in leases), {}, pool.max_instances),
    )
    for kind, counts, own, most in checks:
        for name, count in sorted(counts.items()):
            limit = own.get(name, most)
            if limit is not None and count > limit:
                yield f"{kind} {name} has {count} leases, above its limit of {limit}: none is revoked, none is granted"


def _named(leases: Iterable[Lease]) -> str:
    names = [f"{lease.worker} on {lease.address}" for lease in leases]
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
