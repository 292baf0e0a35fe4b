"""What is leased, where, and what the hosts are: reading, page by page, and the reaper's visit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from allocator.model.errors import InvalidInputError
from allocator.model.names import is_name
from allocator.model.pools import FLEET_NAMESPACE
from allocator.model.states import LeaseState
from allocator.model.values import Value
from allocator.operations.context import read_pool
from allocator.protocol.replies import Reply
from allocator.protocol.signatures.host import CordonCall
from allocator.protocol.signatures.inspect import (
    InspectHostCall,
    InspectHostsCall,
    InspectPortCall,
    InspectPortsCall,
    NewestEventCall,
)
from allocator.protocol.signatures.pool import ReapCall
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.model.pools import PoolSpec
    from allocator.operations.steps import Operation
    from allocator.protocol.signatures.inspect import KnownHost, KnownPort

PAGE = 256
HOSTS_PAGE = 1_000
MAX_HOST_PAGES = 1_000
MAX_PAGES = 100_000
"""Bounds a listing of ports that are renewed (and so move ahead) while it goes on."""
REAP_BATCH, REAP_CALLS = 16, 4
"""Ends reported in one call of a visit, and its calls: Redis is not blocked for long, and a storm is reported in its
time."""


class PortView(Value):
    """What Redis reports of one port of a namespace.

    Attributes:
        port: 1-65535.
        claimable_in_ms: How long it stays unclaimable; 0 when it is claimable.
        lease: The live lease on it, without its token, or None.
        in_quarantine: Whether it rests because the kernel refused it, as far as that was asked for.
    """

    port: int
    claimable_in_ms: float
    lease: Lease | None
    in_quarantine: bool = False

    @property
    def why(self) -> str:
        """`leased`, `quarantined`, `cooling` (in its grace or cooldown) or `free`."""
        if self.lease:
            return "leased"
        if self.claimable_in_ms <= 0:
            return "free"
        return "quarantined" if self.in_quarantine else "cooling"


class HostView(Value):
    """What Redis knows of a host of a pool.

    Attributes:
        name: The host.
        machine: Its machine's identity (a hash), or an empty string when no claim has reported it yet.
        cordoned: Whether it gives out no new ports.
        leases: How many leases are live on it.
        address: The address that it advertises, or an empty string.
        draining: Whether its workers are asked to stop.
    """

    name: str
    machine: str
    cordoned: bool
    leases: int
    address: str = ""
    draining: bool = False

    @property
    def condition(self) -> str:
        """`open`, `cordoned`, or `draining` (`drained` when it has no lease left)."""
        if self.draining:
            return "draining" if self.leases else "drained"
        return "cordoned" if self.cordoned else "open"


class Reaped(Value):
    """What a visit of the reaper came to.

    Attributes:
        closed: How many leases it closed.
        next_s: After how many seconds the next may be due; None when none is.
        namespaces: How many spaces the pool has.
    """

    closed: int
    next_s: float | None
    namespaces: int


def namespaces(pool: str) -> Operation[list[str]]:
    """Return the namespaces that Redis knows of a pool, in alphabetical order: its hosts, and `*` in fleet scope."""
    found: list[str] = []
    for _ in range(MAX_HOST_PAGES):
        page = yield from ask(InspectHostsCall(pool=pool, offset=len(found), count=HOSTS_PAGE))
        found += page
        if len(page) < HOSTS_PAGE:
            break
    return sorted({name for name in found if name == FLEET_NAMESPACE or is_name(name)})


def port_namespaces(rules: PoolSpec) -> Operation[list[str]]:
    """Return the namespaces that have ports, in order: the hosts of a pool, or `*` alone in fleet scope."""
    return [FLEET_NAMESPACE] if rules.scope == "fleet" else (yield from namespaces(rules.name))


def ports(
    pool: str, namespace: str, *, quarantine: bool = False, strange: list[str] | None = None
) -> Operation[list[PortView]]:
    """Return the ports of a namespace that are not claimable now, lowest port first.

    Args:
        pool: The pool.
        namespace: A host of it, or `*` in fleet scope.
        quarantine: Whether to ask which of those that rest are in quarantine too.
        strange: Gets a sentence for each entry of another program, which is passed over.
    """
    until_ms = (yield from ask(InspectHostCall(pool=pool, namespace=namespace))).quarantines if quarantine else {}
    return [
        PortView(one.port, one.claimable_in_ms, one.lease, in_quarantine=until_ms.get(one.port) == one.claimable_at_ms)
        for one in (yield from known_ports(pool, namespace, strange=strange))
    ]


def known_ports(
    pool: str, namespace: str, *, strange: list[str] | None = None, before: dict[int, KnownPort] | None = None
) -> Operation[list[KnownPort]]:
    """Return what Redis has of the ports of a namespace that are not claimable now, lowest port first.

    Args:
        pool: The pool.
        namespace: A host of it, or `*` in fleet scope.
        strange: As for `ports`.
        before: As they were read before; what did not change since is taken from there.
    """
    seen: dict[int, KnownPort] = {}
    cursor = 0.0
    for _ in range(MAX_PAGES):
        page = yield from ask(
            InspectPortsCall(pool=pool, namespace=namespace, from_ms=int(cursor), count=PAGE, before=before or {})
        )
        if strange is not None:
            strange += page.strange
        seen |= {one.port: one for one in page.ports}
        reached = page.reached_ms if page.rows else cursor
        if page.rows < PAGE or reached == cursor:  # a batch that was renewed at once has one score
            break
        cursor = reached
    return [seen[port] for port in sorted(seen)]


def port_view(pool: str, namespace: str, port: int) -> Operation[PortView]:
    """Return what Redis reports of one port of a namespace."""
    known = yield from ask(InspectPortCall(pool=pool, namespace=namespace, port=port))
    return PortView(known.port, known.claimable_in_ms, known.lease)


def newest_event(pool: str) -> Operation[str]:
    """Return the id of the pool's last event, `0-0` when it has none."""
    return (yield from ask(NewestEventCall(pool=pool)))


def leases(pool: str, host: str | None = None) -> Operation[list[Lease]]:
    """Return the live leases of a pool, or of one of its hosts, by host and port.

    Raises:
        InvalidInputError: When Redis knows no such host in the pool.
    """
    rules = yield from read_pool(pool)
    if rules is None:
        return []
    names = yield from port_namespaces(rules)
    if host is not None and rules.scope == "host":
        names = [host] if host in names else []
    found: list[Lease] = []
    for name in names:
        views = yield from ports(pool, name)
        found += [view.lease for view in views if view.lease and host in {None, view.lease.host}]
    return sorted(found, key=lambda lease: (lease.host, lease.port))


def known_namespace(
    rules: PoolSpec, name: str, before: dict[int, KnownPort] | None = None
) -> Operation[tuple[KnownHost, list[KnownPort]]]:
    """Return what Redis has of a namespace, and its ports that cannot be claimed; `before` as for `known_ports`."""
    known = yield from ask(InspectHostCall(pool=rules.name, namespace=name))
    if rules.scope == "fleet" and name != FLEET_NAMESPACE:
        return known, []
    return known, (yield from known_ports(rules.name, name, before=before))


def hosts(pool: str) -> Operation[list[HostView]]:
    """Return the hosts that have claimed in a pool, in alphabetical order."""
    names = yield from namespaces(pool)
    counts = {name: 0 for name in names if name != FLEET_NAMESPACE}
    for name in [FLEET_NAMESPACE] if FLEET_NAMESPACE in names else names:
        for view in (yield from ports(pool, name)):
            if view.lease:
                counts[view.lease.host] = counts.get(view.lease.host, 0) + 1
    found = []
    for name, count in sorted(counts.items()):
        found.append(_host_view(name, (yield from ask(InspectHostCall(pool=pool, namespace=name))), count))
    return found


def host(pool: str, name: str, leases: int) -> Operation[HostView | None]:
    """Return what Redis has of one host, or None when it has nothing.

    Args:
        pool: The pool.
        name: The host.
        leases: How many leases are live on it, which the caller has read.
    """
    known = yield from ask(InspectHostCall(pool=pool, namespace=name))
    if not known.identity and not leases:
        return None
    return _host_view(name, known, leases)


def _host_view(name: str, known: KnownHost, leases: int) -> HostView:
    machine = known.identity.partition(" ")[0]
    return HostView(name, machine, known.cordoned, leases, known.address, known.draining)


def host_identity(pool: str, host: str) -> Operation[str]:
    """Return what a host is known by: machine, boot, network namespace, perhaps its address; `- - -` for nothing."""
    known = yield from ask(InspectHostCall(pool=pool, namespace=host))
    return known.identity or "- - -"


def cordon(pool: str, host: str, *, on: bool) -> Operation[bool]:
    """Make a host give out no new ports, or give them out again: leases that a drain marked are what they were before.

    Returns:
        Whether that changed anything.

    Raises:
        InvalidInputError: When no worker has ever claimed on this host in the pool.
    """
    rules = yield from read_pool(pool)
    namespace = rules.namespace_of(host) if rules else host
    marked = [] if on else [one.port for one in (yield from leases(pool, host)) if one.state is LeaseState.DRAINING]
    codes = []
    for start in range(0, max(1, len(marked)), PAGE):
        ports = tuple(marked[start : start + PAGE])
        what: Literal["cordon", "uncordon"] = "cordon" if on else "uncordon"
        codes.append((yield from ask(CordonCall(pool=pool, namespace=namespace, host=host, what=what, ports=ports))))
    if codes[0] is Reply.UNKNOWN:
        raise InvalidInputError(
            f"host {host} is not known in pool {pool}; see 'allocator host ls' for those that are", host=host
        )
    return codes[0] is Reply.CHANGED


def reap(pool: str) -> Operation[Reaped]:
    """Make ends known that nobody has met: events, service index."""
    closed = 0
    for _ in range(REAP_CALLS):
        visit = yield from ask(ReapCall(pool=pool, most=REAP_BATCH))
        closed += visit.closed
        if visit.closed < REAP_BATCH:
            break
    return Reaped(closed, None if visit.next_ms is None else visit.next_ms / 1_000, visit.namespaces)
