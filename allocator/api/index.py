"""What a pool looks like, in memory: its hosts, their ports and workers, kept current by the pool's events.

The rules of this file: no I/O and no waiting; whoever keeps an index (`keeper`) reads Redis and applies events, in
their order. A lease that an event reports has only that event's fields; the next reading adds the others.
What is answered is made once for each change, however many ask. Nothing here holds a token.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections import Counter, OrderedDict
from operator import itemgetter
from typing import TYPE_CHECKING

from allocator.api.cells import LETTERS, Cell, HostEntry, Judged
from allocator.model import problems
from allocator.model.errors import InvalidInputError
from allocator.model.leases import Lease
from allocator.model.names import WorkerId, check_name, check_port
from allocator.model.pools import FLEET_NAMESPACE
from allocator.model.states import LIVE_STATES, LeaseState
from allocator.model.values import replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from allocator.api.cells import Rank
    from allocator.model.pools import PoolSpec
    from allocator.model.problems import Problem
    from allocator.protocol.signatures.inspect import KnownHost, KnownPort

BEGINS = frozenset({"granted", "reasserted", "restored"})
ENDS = {"released": "cooling", "expired": "cooling", "superseded": "cooling", "declined": "quarantined"}
MOST_DRAWN = 200
"""Ports of a pool whose hosts are written port by port; larger pools have counts only."""
CLOCKS_S = 0.1
"""How far the time of an event and the time of a reading may be apart of what they seem."""
LOST_S = 3_600.0
MOST_FULL = 5
"""Hosts without a free port that are problems of their own; more of them are one problem."""
MOST_LOST = 10_000
"""Workers that ended silently are remembered for an hour, and this number of them."""


class FleetIndex:
    """All hosts of a pool.

    Args:
        rules: The pool.
        is_default: Whether it is the pool that commands mean without `--pool`.

    Attributes:
        hosts: By name.
        named: The pool's name where commands have to name it, else None.
        read: The ports of each namespace as they were read last, by number, so that what stayed is not read again.
    """

    def __init__(self, rules: PoolSpec, *, is_default: bool = False) -> None:
        self.rules = rules
        self.hosts: dict[str, HostEntry] = {}
        self.read: dict[str, dict[int, KnownPort]] = {}
        self.version = 0
        self.granted = 0
        self.lost: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self.unread: OrderedDict[tuple[str, int], None] = OrderedDict()
        self.unread_hosts: set[str] = set()
        self.named = None if is_default else rules.name
        self._totals: tuple[int, Counter[str]] = -1, Counter()
        self._counts: dict[str, Counter[str]] = {}
        self._taken: Counter[str] = Counter()
        self._uncounted: set[str] = set()

    def __repr__(self) -> str:
        return f"<FleetIndex of {self.rules.name}: {len(self.hosts)} hosts, version {self.version}>"

    # -- reading --

    def load(self, namespace: str, known: KnownHost, ports: Iterable[KnownPort], now: float) -> None:
        """Take what was read of a namespace: a host, or the ports of the whole fleet.

        Args:
            namespace: The host, or `*`.
            known: What Redis has of it.
            ports: Its ports that cannot be claimed.
            now: When they were asked for, by the server's clock.
        """
        cells: dict[str, dict[int, Cell]] = {namespace: {}}
        self.read[namespace] = {one.port: one for one in ports}
        for one in self.read[namespace].values():
            host = one.lease.host if one.lease else namespace
            before = self.hosts[host].cells.get(one.port) if host in self.hosts else None
            cells.setdefault(host, {})[one.port] = self._read_cell(one, known, before, now)
        changed = [host for host, found in cells.items() if self._take(host, found, namespace, known, now)]
        others = self.hosts.keys() - cells.keys() if namespace == FLEET_NAMESPACE else set()
        emptied = [name for name in others if self.hosts[name].cells]
        for name in emptied:
            self.hosts[name].cells.clear()
        self._changed(*changed, *emptied)

    def _take(self, host: str, found: dict[int, Cell], namespace: str, known: KnownHost, now: float) -> bool:
        """Take the cells of a host that was read; return whether anything is different."""
        is_new = host not in self.hosts
        entry = self.hosts.setdefault(host, HostEntry(host))
        before = entry.known, entry.heard_at, entry.late
        if host == namespace:
            entry.known = known
        if entry.changed_at > now - CLOCKS_S:  # what an event reported meanwhile may be newer than what was read
            self.unread_hosts.add(namespace)
        is_same = len(found) == len(entry.cells) and all(entry.cells.get(port) is cell for port, cell in found.items())
        entry.cells = found
        entry.rested_at = min((cell.until for cell in found.values() if cell.until is not None), default=math.inf)
        self._hear(entry, now)
        return is_new or not is_same or before != (entry.known, entry.heard_at, entry.late)

    def _read_cell(self, one: KnownPort, known: KnownHost, before: Cell | None, now: float) -> Cell:
        if one.lease is None:
            rests = known.quarantines.get(one.port) == one.claimable_at_ms
            status = "quarantined" if rests else "cooling"
            since = before.since if before and before.status == status else None
            return Cell(status, since, before.fence if before else 0, until=now + one.claimable_in_ms / 1_000)
        lease = one.lease
        if before is not None and before.lease is lease:
            return before
        same = before is not None and before.lease is not None and before.fence == lease.fence
        since = before.since if before and same and before.status == lease.state else None
        if since is None and lease.state is LeaseState.STARTING:
            since = lease.granted_at
        self.lost.pop(str(lease.worker), None)
        return Cell(str(lease.state), since, lease.fence, lease=lease)

    def _hear(self, entry: HostEntry, now: float) -> None:
        leases = entry.leases
        heard = [lease.expires_at - lease.ttl_ms / 1_000 for lease in leases]
        entry.heard_at = max([entry.heard_at or 0.0, *heard]) or None
        entry.late = problems.of_lateness(entry.name, leases, now, self.named)

    def load_port(self, host: str, one: KnownPort) -> None:
        """Take what was read of one port whose lease an event made."""
        cell = self.hosts[host].cells.get(one.port) if host in self.hosts else None
        if cell is None or one.lease is None or one.lease.host != host or one.lease.fence != cell.fence:
            return
        since = cell.since if cell.status == one.lease.state else None
        self.hosts[host].cells[one.port] = Cell(str(one.lease.state), since, cell.fence, lease=one.lease)
        self._changed(host)

    def drop_others(self, hosts: Iterable[str]) -> None:
        """Forget the hosts that Redis does not have any more."""
        for name in self.hosts.keys() - set(hosts):
            self.forget(name)

    def forget(self, host: str) -> None:
        """Forget a host."""
        self.read.pop(host, None)
        if self.hosts.pop(host, None) is not None:
            self._changed(host)

    def learn_since(self, fields: Mapping[str, str], at: float) -> None:
        """Take from an old event since when a port is as it was read; of several the newest has to come first."""
        found = self._cell_of(fields)
        if found is None:
            return
        cell = found[1]
        kind, fence = fields.get("type", ""), fields.get("fence")
        if cell.since is None and str(cell.fence) == fence:
            is_cause = kind in BEGINS or fields.get("state") == cell.status
            cell.since = at if is_cause else None
        elif cell.since is None and cell.lease is None and ENDS.get(kind) == cell.status:
            cell.since = at

    def _cell_of(self, fields: Mapping[str, str]) -> tuple[HostEntry, Cell] | None:
        entry = self.hosts.get(fields.get("host", ""))
        port = fields.get("port", "")
        cell = entry.cells.get(int(port)) if entry and port.isdecimal() and len(port) < 6 else None
        return (entry, cell) if entry and cell else None

    # -- events --

    def apply(self, fields: Mapping[str, str], at: float) -> None:
        """Apply one event; what another program wrote into the stream changes nothing."""
        with contextlib.suppress(InvalidInputError, ValueError):
            kind, host = fields.get("type", ""), fields.get("host", "")
            self.granted += kind == "granted"
            if kind in {"cordoned", "uncordoned", "draining", "registered", "forgotten"}:
                check_name("host", host)
                self.unread_hosts.add(host)
                if host in self.hosts and kind in {"cordoned", "draining"}:
                    self.hosts[host].condition_since = at
            elif kind in BEGINS or kind in ENDS or kind in {"changed", "failed"}:
                fence = int(fields.get("fence", "0")) if fields.get("fence", "-") != "-" else 0
                self._apply_to_port(
                    kind, check_name("host", host), check_port(fields.get("port", "")), fence, fields, at
                )

    def _apply_to_port(self, kind: str, host: str, port: int, fence: int, fields: Mapping[str, str], at: float) -> None:
        entry = self.hosts.setdefault(host, HostEntry(host))
        cell = entry.cells.get(port)
        if cell is not None and fence < cell.fence:
            return
        if kind in BEGINS:
            self._begin(entry, port, fence, WorkerId.parse(fields.get("worker", "")), at)
        elif kind in ENDS:
            self._end(entry, port, kind, fence, fields.get("worker", ""), at)
        elif cell is not None and cell.lease is not None and cell.fence == fence:
            self._change(cell, fields, at)
            self.unread[host, port] = None
        entry.changed_at = max(entry.changed_at, at)
        entry.heard_at = max(entry.heard_at or 0.0, at) if kind not in {"expired", "superseded"} else entry.heard_at
        self._changed(host)

    def _begin(self, entry: HostEntry, port: int, fence: int, worker: WorkerId, at: float) -> None:
        cell = entry.cells.get(port)
        self.lost.pop(str(worker), None)
        if cell is not None and cell.lease is not None and cell.fence == fence:
            return  # it was read after the event
        ttl_s = self.rules.ttl_ms / 1_000
        lease = Lease(
            pool=self.rules.name,
            host=entry.name,
            port=port,
            worker=worker,
            fence=fence,
            ttl_ms=self.rules.ttl_ms,
            granted_at=at,
            expires_at=at + ttl_s,
        )
        entry.cells[port] = Cell("starting", at, fence, lease=lease)
        self.unread[entry.name, port] = None

    def _end(self, entry: HostEntry, port: int, kind: str, fence: int, worker: str, at: float) -> None:
        cell = entry.cells.get(port)
        if cell is not None and cell.lease is None and cell.fence == fence:
            return
        rest_s = {"released": self.rules.cooldown_ms, "declined": 5_000}.get(kind, self.rules.grace_ms) / 1_000
        entry.cells[port] = Cell(ENDS[kind], at, fence, until=at + rest_s)
        entry.rested_at = min(entry.rested_at, at + rest_s)
        if kind == "declined":
            self.unread_hosts.add(entry.name)  # how long it rests depends on how often it was declined
        if kind == "expired" and worker:
            self.lost[worker] = entry.name, at
            self.lost.move_to_end(worker)
            if len(self.lost) > MOST_LOST:
                self.lost.popitem(last=False)

    def _change(self, cell: Cell, fields: Mapping[str, str], at: float) -> None:
        assert cell.lease is not None  # noqa: S101  # the caller's condition
        state, error = fields.get("state"), fields.get("error")
        if state in LIVE_STATES and state != cell.status:
            cell.status, cell.since = state, at
            cell.lease = replace(cell.lease, state=LeaseState(state))
        if error is not None:
            cell.lease = replace(cell.lease, last_error=error)

    def set_strangers(self, host: str, ports: Iterable[int], now: float) -> None:
        """Take which ports of the server's own host somebody listens on without a lease."""
        entry = self.hosts.get(host)
        if entry is None:
            return
        strangers = {port for port in ports if port not in entry.cells or entry.cells[port].lease is None}
        before = {port for port, cell in entry.cells.items() if cell.status == "stranger"}
        if strangers == before:
            return
        for port in before - strangers:
            del entry.cells[port]
        for port in strangers - before:
            entry.cells[port] = Cell("stranger", now, entry.cells[port].fence if port in entry.cells else 0)
        self._changed(host)

    def rest(self, now: float) -> None:
        """Free the ports that have rested long enough."""
        for entry in self.hosts.values():
            if entry.rested_at > now:
                continue
            resting = {port: cell.until for port, cell in entry.cells.items() if cell.until is not None}
            for port in [port for port, until in resting.items() if until <= now]:
                del entry.cells[port]
                self._changed(entry.name)
            entry.rested_at = min((until for until in resting.values() if until > now), default=math.inf)
        while self.lost and now - next(iter(self.lost.values()))[1] > LOST_S:
            self.lost.popitem(last=False)

    def _changed(self, *hosts: str) -> None:
        self.version += bool(hosts)
        self._uncounted.update(hosts)
        for name in hosts:
            if name in self.hosts:
                entry = self.hosts[name]
                entry.judged = entry.counted = entry.drawn = None

    # -- answers --

    @property
    def shown(self) -> list[HostEntry]:
        """The hosts, without the namespace of a fleet-wide pool."""
        return [entry for name, entry in self.hosts.items() if name != FLEET_NAMESPACE]

    def totals(self) -> Counter[str]:
        """Return how many ports there are of each status, and how many in all (`size`) and to claim (`free`)."""
        if self._totals[0] != self.version:
            self._totals = self.version, self._count()
        return self._totals[1]

    def _count(self) -> Counter[str]:
        """Return the totals, for which only the hosts that changed are counted again."""
        for name in self._uncounted:
            self._taken.subtract(self._counts.pop(name, ()))
            if name in self.hosts:
                self._counts[name] = self.hosts[name].counts()
                self._taken.update(self._counts[name])
        self._uncounted.clear()
        namespaces = 1 if self.rules.scope == "fleet" else len(self.shown)
        found = self._taken.copy()
        found["size"] = namespaces * self.rules.size
        found["free"] = max(0, found["size"] - self._taken.total())
        return found

    @property
    def leased(self) -> int:
        """How many leases are live."""
        return sum(cell.lease is not None for entry in self.hosts.values() for cell in entry.cells.values())

    def free_of(self, entry: HostEntry) -> int:
        """Return how many ports a host can still lease."""
        if self.rules.scope == "fleet":
            return self.totals()["free"]
        return max(0, self.rules.size - sum(port in self.rules for port in entry.cells))

    def row(self, entry: HostEntry) -> str | None:
        """Return a host's ports as letters, lowest first; None for a pool that is too large to draw."""
        if self.rules.size > MOST_DRAWN:
            return None
        cells, first = entry.cells, self.rules.first
        return "".join(
            LETTERS.get(cells[port].status, ".") if port in cells else "." for port in range(first, self.rules.last + 1)
        )

    def problems_of(self, entry: HostEntry, now: float) -> list[Problem]:
        """Return what is wrong with a host and its workers, worst first."""
        return self.judged(entry, now).problems

    def judged(self, entry: HostEntry, now: float) -> Judged:
        """Return what is wrong with a host and its workers, and how bad that is."""
        if entry.judged is None or now > entry.judged.until:
            entry.judged = self._judge(entry, now)
        return entry.judged

    def _judge(self, entry: HostEntry, now: float) -> Judged:
        known, pool = entry.known, self.named
        is_open = not (known and (known.cordoned or known.draining))
        found = [
            problems.of_host(
                entry.name,
                cordoned=known is not None and known.cordoned,
                draining=known is not None and known.draining,
                since=entry.condition_since,
                pool=pool,
            ),
            entry.late,
        ]
        until = math.inf
        for port, cell in entry.cells.items():
            if cell.lease is not None:
                found.append(self._judge_lease(cell, now))
                if cell.status == "starting" and found[-1] is None:
                    until = min(until, problems.start_due_at(cell.lease, cell.since))
            elif cell.status == "quarantined":
                found.append(problems.of_quarantine(port, entry.name, cell.since))
            elif cell.status == "stranger":
                found.append(problems.of_stranger(port, "a process", None, entry.name, cell.since))
        besides_room = every = sorted((one for one in found if one is not None), key=_rank)
        if self.rules.scope != "fleet" and is_open:
            free = self.free_of(entry)
            full = problems.of_room(f"host {entry.name}", free, self.rules.size, entry.name, pool)
            every = sorted([*besides_room, full], key=_rank) if full else every
        worst, worst_besides = (_rank(found[0]) if found else None for found in (every, besides_room))
        return Judged(until, -worst[0] if worst else 0, every, besides_room, worst, worst_besides)

    def _judge_lease(self, cell: Cell, now: float) -> Problem | None:
        """Return what is wrong with a worker; what does not depend on the time is found once."""
        assert cell.lease is not None  # noqa: S101  # the caller's condition
        if cell.judged is None or cell.judged[0] is not cell.lease or cell.judged[1] != cell.since:
            found = problems.of_lease(cell.lease, now, cell.since, self.named)
            if found is None and cell.status == "starting":
                return None
            cell.judged = cell.lease, cell.since, found
        return cell.judged[2]

    def problems(self, now: float, most: int | None = None) -> tuple[list[Problem], int]:
        """Return what is wrong in the pool, worst first, longest first among equals, and how much that is.

        Args:
            now: The time, in Unix seconds by the server's clock.
            most: How many are returned at most; None for all.
        """
        judged = [self.judged(entry, now) for entry in self.shown]
        full = sum(one.problems is not one.besides_room for one in judged)
        of_pool = self._problems_of_pool()
        if full > MOST_FULL:
            of_pool.append(problems.of_full_hosts(full, len(judged), self.named))
            found = [(one.rank_besides_room, one.besides_room) for one in judged if one.rank_besides_room]
        else:
            found = [(one.rank, one.problems) for one in judged if one.rank]
        count = len(of_pool) + sum(len(one) for _, one in found)
        if most is not None and len(found) > most:  # the worst are among those of as many lists
            found = sorted(found, key=itemgetter(0))[:most]
        every = [sorted(of_pool, key=_rank), *(one for _, one in found)]
        return list(itertools.islice(heapq.merge(*every, key=_rank), most)), count

    def _problems_of_pool(self) -> list[Problem]:
        totals = self.totals()
        everywhere = problems.of_room(f"pool {self.rules.name}", totals["free"], totals["size"], pool=self.named)
        found = [everywhere] if everywhere and self.shown else []
        by_host: dict[str, list[str]] = {}
        for worker, (host, _) in self.lost.items():
            by_host.setdefault(host, []).append(worker)
        for host, workers in by_host.items():
            found.append(problems.of_lost_workers(host, workers, self.lost[workers[0]][1], self.named))
        return found

    def search(self, terms: list[str], most: int) -> tuple[list[HostEntry], list[Lease], int]:
        """Return the hosts and the leases that match all of the query, up to `most` of each, and how many leases do.

        What is written exactly so comes first (`org-1` before `org-17`), and of that what is not ready.
        """
        hosts = [entry for entry in self.shown if all(term in entry.name.lower() for term in terms)]
        found = [
            (not set(terms) <= set(cell.text.split()), cell.status == "ready", entry.name, port, cell.lease)
            for entry in self.shown
            for port, cell in entry.cells.items()
            if cell.lease is not None and all(term in cell.text for term in terms)
        ]
        first = heapq.nsmallest(most, found, key=lambda one: one[:4])
        return sorted(hosts, key=lambda one: one.name)[:most], [one[4] for one in first], len(found)

    def services(self) -> dict[tuple[str, str], list[Lease]]:
        """Return the live leases by organisation and plugin, in alphabetical order."""
        found: dict[tuple[str, str], list[Lease]] = {}
        for entry in self.shown:
            for lease in entry.leases:
                found.setdefault((lease.org, lease.plugin), []).append(lease)
        return dict(sorted(found.items()))


def _rank(one: Problem) -> Rank:
    """Return where a problem is among others: the worst first, of equals the one that has lasted longest."""
    return -one.severity, one.since or math.inf, one.host or "", one.port or 0
