"""Which addresses are good: what Redis shows, and for a while what it does not show any more.

The rule of this file: a lease that an event ended is gone at once; a lease that Redis merely does not have (it was
emptied, started again without its data, replaced by a replica that lagged) leaves its address for one TTL, in which
its holder renews it, if it lives. Known addresses never go because Redis could not be asked. No I/O, no threads: who
reads Redis passes in what it read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from allocator.model.endpoints import Endpoint, Sighting

ServiceName = tuple[str, str]
"""Plugin and organisation."""
_Address = tuple[str, int]
"""Host and port."""

ENDED = frozenset({"released", "declined", "superseded", "forced"})
"""Events after which nobody holds the lease: whoever ended it had the right to."""
GRANTED = frozenset({"granted", "reasserted", "restored"})
SILENT = 0.25
"""Whose lease had less than this part of its TTL left was silent for longer than any holder that lives: they renew at
0.45-0.55 TTL. Such a lease ran out; it was not lost."""


@dataclass(slots=True)
class _Known:
    """An address that clients may use, or could when Redis last showed it.

    Attributes:
        sighting: What Redis showed.
        seen_at: When that was.
        until: When it is dropped unless it is seen again; None while Redis shows it.
        doubted_until: Until when an expiry proves nothing, because its holder could not renew while Redis was away.
    """

    sighting: Sighting
    seen_at: float
    until: float | None = None
    doubted_until: float = 0.0

    @property
    def ttl_s(self) -> float:
        return self.sighting.lease.ttl_ms / 1_000

    @property
    def service(self) -> ServiceName:
        return self.sighting.lease.plugin, self.sighting.lease.org

    def is_over(self, now: float) -> bool:
        """Return whether an address that Redis does not show has expired; its time begins at the first call."""
        if self.until is None:
            left_s = self.sighting.left_ms / 1_000
            was_silent = left_s < SILENT * self.ttl_s and now >= self.doubted_until
            self.until = now if was_silent and now >= self.seen_at + left_s else now + self.ttl_s
        return now >= self.until


class AddressMemory:
    """The good addresses of a pool, or of some services of it.

    Args:
        states: The states in which a worker's address is used.
        clock: The monotonic clock, in seconds.

    Attributes:
        is_fleet: Whether a port is one worker's over all hosts of the pool.
    """

    def __init__(
        self,
        states: frozenset[LeaseState] = frozenset({LeaseState.READY}),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._states = states
        self._clock = clock
        self._known: dict[_Address, _Known] = {}
        self._services: dict[ServiceName, set[_Address]] = {}
        self._of_worker: dict[str, _Address] = {}
        self._of_port: dict[int, set[_Address]] = {}
        self._touched: set[ServiceName] = set()
        self.is_fleet = False

    def good(self, service: ServiceName) -> list[Sighting]:
        """Return what is known of the good addresses of a service, by host and port."""
        return [self._known[address].sighting for address in sorted(self._services.get(service, ()))]

    def endpoints(self, service: ServiceName) -> tuple[Endpoint, ...]:
        """Return the good addresses of a service, in order."""
        return tuple(sorted(one.endpoint for one in self.good(service)))

    def services(self) -> set[ServiceName]:
        """Return the services that have a good address."""
        return {service for service, addresses in self._services.items() if addresses}

    def take_touched(self) -> set[ServiceName]:
        """Return the services whose addresses may have changed since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def overdue(self) -> set[ServiceName]:
        """Return the services of which an address has been missing for its time; to be read again."""
        now = self._clock()
        return {known.service for known in self._known.values() if known.until is not None and now >= known.until}

    def see(self, services: Iterable[ServiceName], sightings: Iterable[Sighting]) -> None:
        """Apply one reading of Redis.

        Args:
            services: Which services were read.
            sightings: All their live leases, in whatever state.
        """
        now = self._clock()
        shown: set[_Address] = set()
        for one in sightings:
            address = (one.lease.host, one.lease.port)
            shown.add(address)
            before = self._known.get(address)
            self._forget_others(address, str(one.lease.worker), one.lease.fence)
            if one.lease.state in self._states:
                self._remember(address, _addressed(one, before), now)
            else:
                self._forget(address)
        for service in services:
            for address in [address for address in self._services.get(service, ()) if address not in shown]:
                if self._known[address].is_over(now):
                    self._forget(address)

    def hear(self, fields: Mapping[str, str]) -> None:
        """Apply one event of the pool's stream."""
        kind, host, worker = fields.get("type", ""), fields.get("host", ""), fields.get("worker", "")
        port, fence = _number(fields.get("port")), _number(fields.get("fence"))
        address = (host, port)
        known = self._known.get(address)
        if kind == "forgotten":
            for one in [one for one in self._known if one[0] == host]:
                self._forget(one)
        elif kind in GRANTED:
            self._forget_others(address, worker, fence)
        elif known is None or fence < known.sighting.lease.fence:
            return
        elif kind == "changed":
            if fields.get("state") not in self._states:
                self._forget(address)
        elif kind in ENDED or (kind == "expired" and self._clock() >= known.doubted_until):
            self._forget(address)
        elif kind == "expired":
            known.until = known.doubted_until

    def doubt(self) -> None:
        """Apply that Redis answers again: leases that expired meanwhile may still have live holders."""
        now = self._clock()
        for known in self._known.values():
            known.doubted_until = now + known.ttl_s
            if known.until is not None:
                known.until = known.doubted_until

    def _forget_others(self, address: _Address, worker: str, fence: int) -> None:
        """Forget the addresses that a grant replaces: on its host and port, of its worker, of its port in a fleet."""
        others = {address, self._of_worker.get(worker, address)}
        if self.is_fleet:
            others |= self._of_port.get(address[1], set())
        for other in others:
            known = self._known.get(other)
            is_same = other == address and known is not None and str(known.sighting.lease.worker) == worker
            if known is not None and not is_same and known.sighting.lease.fence < fence:
                self._forget(other)

    def _remember(self, address: _Address, sighting: Sighting, now: float) -> None:
        self._forget(address)
        known = self._known[address] = _Known(sighting, now)
        self._services.setdefault(known.service, set()).add(address)
        self._touched.add(known.service)
        self._of_worker[str(sighting.lease.worker)] = address
        self._of_port.setdefault(address[1], set()).add(address)

    def _forget(self, address: _Address) -> None:
        known = self._known.pop(address, None)
        if known is None:
            return
        self._services[known.service].discard(address)
        self._touched.add(known.service)
        self._of_port[address[1]].discard(address)
        worker = str(known.sighting.lease.worker)
        if self._of_worker.get(worker) == address:
            del self._of_worker[worker]


def _addressed(one: Sighting, before: _Known | None) -> Sighting:
    """Return a sighting with the address that its host had advertised, where Redis lost that with all the rest."""
    if before is None or one.endpoint.address != one.endpoint.host:
        return one
    if before.sighting.lease.worker != one.lease.worker:
        return one
    return replace(one, endpoint=replace(one.endpoint, address=before.sighting.endpoint.address))


def _number(text: str | None) -> int:
    """Return a number of an event; -1 for what another program wrote there."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) <= 19 else -1
